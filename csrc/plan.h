// Which sequence kernel serves a problem on a GPU, with which tiles, and why: a pure function of
// (problem, device). No CUDA header, no GPU: it plans for any card, and tests walk it over
// thousands of problems.
//
//   stepwise   any GPU, size and type: one launch a step (and one more for each further product)
//   grid       W_hh spread over all SMs for the whole sequence, h exchanged through L2
//   cluster    W_hh spread over one thread-block cluster, h exchanged inside it (sm_90 and newer)
//
// Times are a model, not measurements.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cluster_tile.h"
#include "grid_tile.h"
#include "sequence.h"

namespace fusedrnn {

// What a plan depends on, of one GPU. csrc/devices.h has those known by name.
struct GpuDevice {
  std::string name, title;
  int arch;            // compute capability: 10 * major + minor
  int sms;             // streaming multiprocessors
  int gpcs;            // groups of SMs, which no cluster crosses; 0: no clusters
  int max_cluster;     // CTAs of a cluster, the non-portable size included; 1: no clusters
  int shared_per_cta;  // bytes, opted in
  int shared_per_sm;   // bytes
  int threads_per_sm;
  int fma32, fma64;  // multiply-adds a clock and SM
  int mma16;         // the same by mma.sync on 16-bit data
  double ghz;        // boost clock
};

constexpr int kRegistersPerSm = 65536, kRegistersPerThread = 255;
constexpr int kSharedReserved = 1024;  // bytes that the system takes of each CTA, from sm_80 on

struct PlanProblem {
  int gates, states, second;  // Cell::kGates, Cell::kStates, Cell::kSecond
  int64_t T, B, H, P;         // as in sequence.h
  DType dtype;
  bool projection;
  bool backward;
  int directions;              // 1 or 2
  bool stepwise_only = false;  // CellOptions: so called, ...
  bool full = false;           // ... full peepholes, and ...
  bool layer_norm = false;
  bool tf32 = false;  // of float32: whether products may be those of rounded numbers
  int at_once = 1;    // such launches for which a kernel with W_hh on chip is to leave room
};

enum class SequenceKernel : int { cluster, grid, stepwise };
const char* name_of(SequenceKernel);

// Why the resident kernels do not take a problem with stepwise_only.
constexpr const char* kStepwiseOnly =
    "peepholes, layer normalisation, independent units, zoneout and dropout within the cell are "
    "the "
    "stepwise kernel's";

// Why the resident kernels do not take float64.
constexpr const char* kNoTensorCores =
    "its products are those of tensor cores, which take 16 bits, and float32 in parts";

// Products of mma.sync in the place of one of 16-bit numbers, in time: tf32 has half the rate, and
// float32 that is not rounded takes three of them.
inline int products_of(const PlanProblem& p) { return p.dtype != DType::f32 ? 1 : p.tf32 ? 2 : 6; }
// What a plan of float32 says of them.
inline const char* words_of(const PlanProblem& p) {
  return p.dtype != DType::f32 ? ""
         : p.tf32 ? "; products in tf32, as torch's switch for RNNs allows"
                  : "; three products in tf32 for each of float32, as torch's switch for RNNs asks";
}

// What an obstacle says of launches that run at once.
inline std::string side_by_side(const PlanProblem& p) {
  return p.at_once == 1 ? ""
                        : ", or has no room for " + std::to_string(p.at_once) + " side by side";
}

// How one kernel would serve a problem.
struct Plan {
  SequenceKernel kernel;
  std::string obstacle = "";   // why it cannot serve the problem on the device; empty: it can
  int64_t rows = 0;            // batch rows of one pass ...
  int64_t units = 0;           // ... and hidden units of one CTA
  int depth = 0;               // of the product at a time, where W_hh is not resident; else 0
  int cluster = 1;             // CTAs of one cluster
  int64_t ctas = 0;            // of one launch, all directions that run at once
  int threads = 0;             // of one CTA
  int registers = 0;           // of one thread, at most
  int shared = 0;              // bytes of one CTA
  int ctas_per_sm = 0;         // that fit at once
  int64_t at_once = 0;         // such launches that the device holds side by side
  int64_t resident_bytes = 0;  // of W_hh in one CTA for the whole sequence
  int64_t launches = 0;        // of the whole sequence, states in and out not counted
  int64_t rounds = 1;          // times that the SMs are filled in each step
  double us_per_step = 0;      // predicted
  std::string reason = "";     // why these tiles
  ClusterWork work = {};       // the cluster kernel's: what it is launched with
  GridWork grid = {};          // likewise the grid kernel's
};

// All three kernels, the one to run first: the fastest of those that can serve.
std::vector<Plan> plans(const PlanProblem&, const GpuDevice&);

Plan plan_stepwise(const PlanProblem&, const GpuDevice&);
Plan plan_grid(const PlanProblem&, const GpuDevice&);
Plan plan_cluster(const PlanProblem&, const GpuDevice&);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tile of the stepwise kernels, by the bytes of one element. csrc/cuda/product.cuh is written
// for it and takes it from here.
struct StepwiseTile {
  static constexpr int kThreads = 128, kRows = 32, kUnits = 16;
  static constexpr int kRowThreads = 256;  // of a CTA that owns a whole row: layer normalisation
  // Deeper where there are few gates: with them the weights' tile is small, and what a CTA has on
  // its way from memory at once is what its speed depends on.
  static constexpr int depth(int gates, int item) {
    return (item == 2 ? 64 : 32) * (gates <= 2 ? 2 : 1);
  }
  // CTAs that an SM must be able to hold (__launch_bounds__). That leaves 128 registers a thread
  // where tensor cores multiply (16 bits, from sm_80 on), 255 in double, else 168.
  static constexpr int ctas_per_sm(int item, bool tensor_cores) {
    return item == 8 ? 2 : tensor_cores ? 4 : 3;
  }
  static constexpr int64_t ctas(int64_t rows, int64_t units) {
    return (rows + kRows - 1) / kRows * ((units + kUnits - 1) / kUnits);
  }
  // Bytes of shared memory: both tiles, or afterwards the sums that threads share. `split`: how
  // many threads share one sum, since one or two gates leave some free.
  static constexpr int shared(int gates, int item, bool by_rows) {
    const int pad = 16 / item, split = gates == 1 ? 4 : gates == 2 ? 2 : 1;
    const int deep = depth(gates, item), a = kRows * (deep + pad);
    const int w = by_rows ? gates * kUnits * (deep + pad) : deep * (kUnits + (item == 2 ? pad : 0));
    const int sums = split * gates * kRows * kUnits * (item == 8 ? 8 : 4);
    return (a + w) * item > sums ? (a + w) * item : sums;
  }
};

}  // namespace fusedrnn
