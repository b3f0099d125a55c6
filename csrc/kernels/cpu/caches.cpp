#include "kernels/cpu/caches.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace rome_fast {
namespace {

int64_t clamp(int64_t bytes, int64_t least, int64_t most) {
  return bytes < least ? least : bytes > most ? most : bytes;
}

// What the C library says, or 0: musl and macOS have no such names, and on AArch64 glibc may not
// know.
int64_t from_library(int level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
#else
  return 0;
#endif
}

// One line of a file of Linux about a cache of the first core, as `format` has it.
template <class T>
bool read_fact(int index, const char* name, const char* format, T* value) {
  char path[96];
  std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return false;
  const bool read = std::fscanf(file, format, value) == 1;
  std::fclose(file);
  return read;
}

// What Linux says, or 0.
int64_t from_system(int level) {
  constexpr int kMaxCaches = 8;
  for (int index = 0; index < kMaxCaches; ++index) {
    int found = 0;
    char type = 0;  // Data, Instruction or Unified
    long kib = 0;
    if (read_fact(index, "level", "%d", &found) && found == level &&
        read_fact(index, "type", "%c", &type) && type != 'I' &&
        read_fact(index, "size", "%ldK", &kib)) {
      return int64_t{kib} << 10;
    }
  }
  return 0;
}

int64_t size_of_level(int level, int64_t otherwise) {
  int64_t bytes = from_library(level);
  if (bytes <= 0) bytes = from_system(level);
  return bytes > 0 ? bytes : otherwise;
}

// Virtual machines may report anything, and a large L2 is one that several cores share.
Caches read_caches() {
  long l1 = size_of_level(1, 32 << 10) >> 10;
  long l2 = size_of_level(2, 512 << 10) >> 10;
  const char* wanted = std::getenv("ROME_FAST_CACHES");
  if (wanted != nullptr) std::sscanf(wanted, "%ld,%ld", &l1, &l2);
  return {clamp(int64_t{l1} << 10, 8 << 10, 128 << 10),
          clamp(int64_t{l2} << 10, 64 << 10, 2 << 20)};
}

}  // namespace

const Caches& caches() {
  static const Caches sizes = read_caches();
  return sizes;
}

}  // namespace rome_fast
