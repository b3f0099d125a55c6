// In the wheel alone: without this one symbol of glibc 2.32 it asks for nothing that torch's own
// wheels do not ask for.
//
// libstdc++ reads the flag to count references without atomics while a process has one thread. A
// definition of our own, hidden in the library, says "more than one", which is always right.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
