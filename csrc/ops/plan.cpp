// The planner as ops without tensors: fusedrnn/plan.py reads and writes their text.
#include "../plan.h"

#include <sstream>

#include "../cell_name.h"
#include "../cells.h"
#include "../cuda/cluster_launchers.h"
#include "../devices.h"
#include "common.h"

namespace fusedrnn {
namespace {

// A device in one line, its fields between bars, in the order of GpuDevice.
void write(std::ostringstream& out, const GpuDevice& d) {
  out << d.name << '|' << d.title << '|' << d.arch << '|' << d.sms << '|' << d.gpcs << '|'
      << d.max_cluster << '|' << d.shared_per_cta << '|' << d.shared_per_sm << '|'
      << d.threads_per_sm << '|' << d.fma32 << '|' << d.fma64 << '|' << d.mma16 << '|' << d.ghz
      << '\n';
}

std::string gpu_devices() {
  std::ostringstream out;
  for (const GpuDevice& d : known_devices()) write(out, d);
  return out.str();
}

std::string gpu_like(std::string title, int64_t arch, int64_t sms, int64_t shared_per_cta,
                     int64_t shared_per_sm, int64_t threads_per_sm) {
  GpuDevice seen = {};
  seen.title = title, seen.arch = int(arch), seen.sms = int(sms);
  seen.shared_per_cta = int(shared_per_cta), seen.shared_per_sm = int(shared_per_sm);
  seen.threads_per_sm = int(threads_per_sm);
  std::ostringstream out;
  write(out, like_known(seen));
  return out.str();
}

GpuDevice read_device(const std::string& line) {
  std::istringstream in(line);
  GpuDevice d;
  std::getline(in, d.name, '|');
  std::getline(in, d.title, '|');
  char bar;
  in >> d.arch >> bar >> d.sms >> bar >> d.gpcs >> bar >> d.max_cluster >> bar >>
      d.shared_per_cta >> bar >> d.shared_per_sm >> bar >> d.threads_per_sm >> bar >> d.fma32 >>
      bar >> d.fma64 >> bar >> d.mma16 >> bar >> d.ghz;
  STD_TORCH_CHECK(in, "fusedrnn: not the line of a device: ", line);
  return d;
}

DType read_dtype(const std::string& name) {
  if (name == "float64") return DType::f64;
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  STD_TORCH_CHECK(name == "float16", "fusedrnn: dtype is '", name,
                  "'; it must be float64, float32, bfloat16 or float16");
  return DType::f16;
}

void write(std::ostringstream& out, const Plan& p) {
  out << name_of(p.kernel) << '|' << p.obstacle << '|' << p.rows << '|' << p.units << '|' << p.depth
      << '|' << p.cluster << '|' << p.ctas << '|' << p.threads << '|' << p.registers << '|'
      << p.shared << '|' << p.ctas_per_sm << '|' << p.at_once << '|' << p.resident_bytes << '|'
      << p.launches << '|' << p.rounds << '|' << p.us_per_step << '|' << p.reason << '\n';
}

// What the current GPU says of clusters of so many CTAs.
std::string cluster_room(int64_t size) {
#ifdef FUSEDRNN_CUDA
  const char* why_none = nullptr;
  const int count = cuda::cluster_room(int(size), why_none);
  return why_none != nullptr ? why_none : std::to_string(count) + " at once";
#else
  return "the library has no CUDA kernels, nor clusters of " + std::to_string(size);
#endif
}

// One line a kernel, in the order of plans(), the fields of Plan between bars. `precision`: tf32 or
// ieee; empty: as torch's switch is.
std::string sequence_plans(std::string cell, std::string dtype, int64_t T, int64_t B, int64_t H,
                           int64_t P, bool projection, bool backward, int64_t directions,
                           int64_t at_once, std::string precision, std::string device) {
  PlanProblem problem{
      0, 0, 0, T, B, H, P, read_dtype(dtype), projection, backward, int(directions)};
  const CellName name = read_cell(cell);
  const std::string& kernel = name.kernel;
  problem.stepwise_only = name.options.stepwise_only();
  problem.tf32 = problem.dtype == DType::f32 &&
                 (precision.empty() ? recurrence_in_tf32() : precision == "tf32");
  problem.at_once = int(at_once);
  problem.full = name.options.full, problem.layer_norm = name.options.layer_norm;
#define X(...)                             \
  if (kernel == __VA_ARGS__::kName) {      \
    problem.gates = __VA_ARGS__::kGates;   \
    problem.states = __VA_ARGS__::kStates; \
    problem.second = __VA_ARGS__::kSecond; \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  STD_TORCH_CHECK(problem.gates > 0, "fusedrnn: no cell named '", cell, "'");
  STD_TORCH_CHECK(T > 0 && B > 0 && H > 0 && P > 0 && (directions == 1 || directions == 2),
                  "fusedrnn: T, B, H and P must be positive, directions 1 or 2");
  STD_TORCH_CHECK(at_once >= 1 && at_once < 256, "fusedrnn: at_once must be in 1..255");
  std::ostringstream out;
  for (const Plan& plan : plans(problem, read_device(device))) write(out, plan);
  return out.str();
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("gpu_devices", TORCH_BOX(&fusedrnn::gpu_devices));
  m.impl("cluster_room", TORCH_BOX(&fusedrnn::cluster_room));
  m.impl("gpu_like", TORCH_BOX(&fusedrnn::gpu_like));
  m.impl("sequence_plans", TORCH_BOX(&fusedrnn::sequence_plans));
}
