// A shared library that knows nothing of Limbeck.
extern "C" int answer();
extern "C" int answer() { return 42; }
