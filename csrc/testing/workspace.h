// What the host builds of the kernels have for an op's workspace.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fusedrnn {

// A workspace of NaN between two guards; says whether a kernel wrote beyond it.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kGuard + 256, '\xff') {
    start_ = memory_.data() + kGuard;
    start_ += 256 - reinterpret_cast<uintptr_t>(start_) % 256;
  }
  void* data() { return start_; }
  bool intact() const {
    const auto blank = [](char c) { return c == '\xff'; };
    return std::all_of(memory_.data(), static_cast<const char*>(start_), blank) &&
           std::all_of(static_cast<const char*>(start_) + bytes_, memory_.data() + memory_.size(),
                       blank);
  }

 private:
  static constexpr size_t kGuard = 1024;
  size_t bytes_;
  std::string memory_;
  char* start_;
};

}  // namespace fusedrnn
