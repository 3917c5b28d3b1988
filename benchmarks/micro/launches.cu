// What a launch costs that waits for the one before it, from a stream and in a CUDA graph, with and
// without programmatic dependent launch; and what a large copy reaches.
#include "micro.cuh"

namespace {

constexpr int kLaunches = 1000;

__global__ void nothing(float*) {}

// Lets the next launch begin its preamble at once and waits for the one before it.
__global__ void dependent(float*) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

void many(void (*kernel)(float*), int ctas, bool programmatic, cudaStream_t stream) {
  cudaLaunchAttribute attribute[1];
  attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute->val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(ctas), config.blockDim = dim3(128), config.stream = stream;
  config.attrs = attribute, config.numAttrs = programmatic;
  for (int i = 0; i < kLaunches; ++i) {
    micro::check(cudaLaunchKernelEx(&config, kernel, static_cast<float*>(nullptr)), "launch");
  }
}

void measure(const char* way, void (*kernel)(float*), int ctas, bool programmatic) {
  const float stream_us =
      micro::best_us([&] { many(kernel, ctas, programmatic, nullptr); }, way) / kLaunches;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  micro::check(cudaStreamCreate(&stream), way);
  micro::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), way);
  many(kernel, ctas, programmatic, stream);
  micro::check(cudaStreamEndCapture(stream, &graph), way);
  micro::check(cudaGraphInstantiate(&ready, graph, 0), way);
  const float graph_us =
      micro::best_us([&] { micro::check(cudaGraphLaunch(ready, nullptr), way); }, way) / kLaunches;
  micro::say(way, "\"ctas\": %d, \"stream_us\": %.4f, \"graph_us\": %.4f", ctas, stream_us,
             graph_us);
}

}  // namespace

int main() {
  const cudaDeviceProp device = micro::device();
  const size_t bytes = size_t(1) << 30;
  char* memory = micro::zeros<char>(2 * bytes);
  const auto copy = [&] {
    micro::check(cudaMemcpyAsync(memory + bytes, memory, bytes, cudaMemcpyDeviceToDevice), "copy");
  };
  const float us = micro::best_us(copy, "copy");
  micro::say("copy", "\"bytes\": %zu, \"gb_per_s\": %.1f", bytes, 2e-3 * bytes / us);
  cudaFree(memory);
  for (int ctas : {1, device.multiProcessorCount}) {
    measure("launch", nothing, ctas, false);
    if (device.major >= 9) measure("launch_programmatic", dependent, ctas, true);
  }
}
