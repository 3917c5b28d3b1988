// What the microbenchmarks share. Each prints one JSON object a line; the first that has an "error"
// says why there is nothing more. `python -m benchmarks gpu-check --part micro` compiles and runs
// them.
#pragma once
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace micro {

// A wait that lasts longer than this many clocks (about a second) ends the kernel with an error: a
// protocol that hangs must not hang the machine.
constexpr long long kPatience = 2'000'000'000;

[[noreturn]] inline void stop(const char* what, const char* why) {
  printf("{\"error\": \"%s: %s\"}\n", what, why);
  exit(1);
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) stop(what, cudaGetErrorString(error));
}

// Prints {"name": name, fields}.
inline void say(const char* name, const char* format, ...) {
  va_list values;
  va_start(values, format);
  printf("{\"name\": \"%s\", ", name);
  vprintf(format, values);
  printf("}\n");
  fflush(stdout);
  va_end(values);
}

inline cudaDeviceProp device() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return properties;
}

// Microseconds of run(), the best of five after one that warms up; errors of kernels stop.
template <class F>
float best_us(F run, const char* what) {
  cudaEvent_t first, last;
  check(cudaEventCreate(&first), what);
  check(cudaEventCreate(&last), what);
  float best = 1e30f;
  for (int i = 0; i < 6; ++i) {
    check(cudaEventRecord(first), what);
    run();
    check(cudaEventRecord(last), what);
    check(cudaEventSynchronize(last), what);
    check(cudaGetLastError(), what);
    float ms;
    check(cudaEventElapsedTime(&ms, first, last), what);
    if (i > 0 && ms < best) best = ms;
  }
  return best * 1e3f;
}

// Device memory of n zeros.
template <class T>
T* zeros(size_t n) {
  T* memory;
  check(cudaMalloc(&memory, n * sizeof(T)), "cudaMalloc");
  check(cudaMemset(memory, 0, n * sizeof(T)), "cudaMemset");
  return memory;
}

template <class T>
T read_one(const T* from) {
  T value;
  check(cudaMemcpy(&value, from, sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return value;
}

}  // namespace micro
