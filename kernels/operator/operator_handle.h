// A handle on a registered operator by name, e.g. typed_operator<decltype(swiglu)>("limbeck::swiglu"). Keep it in a
// static.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace limbeck::kernels {

template <class Signature>
c10::TypedOperatorHandle<Signature> typed_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace limbeck::kernels
