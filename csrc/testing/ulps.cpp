// The errors of the host's float activations, as the kernels of one instruction set compute them:
// a vector at a time, over every float32 whose result is neither its argument nor a constant.
//   prints: name, worst error in units of the last place, where
#include <cmath>
#include <cstdio>
#include <thread>

#include "../cpu/lanes.h"

using namespace fusedrnn;
typedef Vector<float>::type Vec;

namespace {

struct Worst {
  double ulps = 0;
  float at = 0;
};

double ulps(float value, double truth) {
  int exponent;
  std::frexp(float(truth), &exponent);
  return std::fabs(value - truth) / std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

// Every `threads`-th vector of the floats from `low` to `high`, of one sign.
template <class F, class G>
Worst search(F f, G truth, float low, float high, int index, int threads) {
  constexpr int lanes = Vector<float>::lanes;
  Worst worst;
  const uint64_t last = bits_of(high);
  for (uint64_t u = bits_of(low) + index * lanes; u <= last; u += threads * lanes) {
    Vec x;
    for (int l = 0; l < lanes; ++l) x[l] = float_of(uint32_t(u + l < last ? u + l : last));
    const Vec y = f(x);
    for (int l = 0; l < lanes; ++l)
      if (const double e = ulps(y[l], truth(x[l])); !(e <= worst.ulps)) worst = {e, x[l]};
  }
  return worst;
}

template <class F, class G>
void report(const char* name, F f, G truth, float low, float high) {
  Worst a, b;
  std::thread other([&] { b = search(f, truth, low, high, 1, 2); });
  a = search(f, truth, low, high, 0, 2);
  other.join();
  if (!(b.ulps <= a.ulps)) a = b;
  std::printf("%s %.3f %.9g\n", name, a.ulps, a.at);
}

}  // namespace

int main() {
  const auto sigmoid_of = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto sigmoid_of_vector = [](Vec x) { return sigmoid_host(x); };
  report(
      "tanh", [](Vec x) { return tanh_host(x); }, [](double x) { return std::tanh(x); }, 0x1p-13f,
      9.1f);
  report("sigmoid", sigmoid_of_vector, sigmoid_of, 0x1p-26f, 18.0f);
  report("sigmoid", sigmoid_of_vector, sigmoid_of, -0x1p-26f, -87.0f);
}
