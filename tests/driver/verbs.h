// What tests need of the libraries in a process of its own: verbs of test_driver, and of forked_program
// (tests/trainer).
#pragma once

namespace limbeck::test {

// forked_program's resave_model MODEL OUT [FLAG VALUE]...: loads a model, or draws a fresh one from its config.json,
// and saves it.
int resave_model(int count, char** arguments);
// test_driver templates: renders chat templates, one a line of standard input.
int render_templates();
// test_driver backward early|late: a backward on the device, with CUDA loaded before the process's first backward or
// after it.
int late_load(int count, char** arguments);
// test_driver touch: the host reads a tensor of the device as one of its own.
int touch_device();

}  // namespace limbeck::test
