// A cell's whole name: its kernel's, and its options (csrc/cell_options.h).
//
//   "gru"   "gru:candidate=relu"   "lstm:update=tanh:output=identity:clip=3.0"
//   "rnn_tanh", "rnn_relu", ...: the kernel "rnn" with that candidate, by torch's name for it
//
// Who makes names (fusedrnn/cells) knows which options a cell has; one that a kernel does not look
// at is no error here.
#pragma once
#include <stdexcept>
#include <string>

#include "cell_options.h"

namespace fusedrnn {

struct CellName {
  std::string kernel;
  CellOptions options;
};

inline Nonlinearity read_nonlinearity(const std::string& name) {
  if (name == "tanh") return Nonlinearity::tanh;
  if (name == "relu") return Nonlinearity::relu;
  if (name == "sigmoid") return Nonlinearity::sigmoid;
  if (name == "identity") return Nonlinearity::identity;
  throw std::invalid_argument("fusedrnn: no nonlinearity named '" + name +
                              "'; there are tanh, relu, sigmoid and identity");
}

inline double read_number(const std::string& text) {
  size_t end = 0;
  const double value = text.empty() ? 0 : std::stod(text, &end);
  if (end == text.size() && value > 0) return value;
  throw std::invalid_argument("fusedrnn: '" + text + "' is not a number above 0");
}

inline void read_option(CellOptions& options, const std::string& key, const std::string& value) {
  if (key == "candidate") {
    options.candidate = read_nonlinearity(value);
  } else if (key == "update") {
    options.update = read_nonlinearity(value);
  } else if (key == "output") {
    options.output = read_nonlinearity(value);
  } else if (key == "clip") {
    options.clip = read_number(value);
  } else if (key == "dh_clip") {
    options.dh_clip = read_number(value);
  } else if (key == "zoneout_h") {
    options.zoneout_h = read_number(value);
  } else if (key == "zoneout_c") {
    options.zoneout_c = read_number(value);
  } else if (key == "variational") {
    options.variational = read_number(value);
  } else if (key == "dropout") {
    options.dropout = read_number(value);
  } else if (key == "residual" && value == "True") {
    options.residual = true;
  } else if (key == "peephole" && value == "diagonal") {
    options.peephole = true;
  } else if (key == "peephole" && value == "full") {
    options.full = true;
  } else if (key == "layer_norm" && value == "True") {
    options.layer_norm = true;
  } else if (key == "independent" && value == "True") {
    options.independent = true;
  } else {
    throw std::invalid_argument(
        "fusedrnn: no cell has an option '" + key +
        "'; there are candidate, update, output, clip, dh_clip, zoneout_h, zoneout_c, dropout, "
        "variational, "
        "residual=True, independent=True, peephole=diagonal, peephole=full and layer_norm=True");
  }
}

inline CellName read_cell(const std::string& name) {
  const size_t colon = name.find(':');
  CellName cell{name.substr(0, colon), {}};
  if (cell.kernel.rfind("rnn_", 0) == 0) {
    read_option(cell.options, "candidate", cell.kernel.substr(4));
    cell.kernel = "rnn";
  }
  for (size_t at = colon; at != std::string::npos;) {
    const size_t end = name.find(':', at + 1);
    const std::string option = name.substr(at + 1, end - at - 1);
    const size_t equals = option.find('=');
    read_option(cell.options, option.substr(0, equals),
                equals == std::string::npos ? "" : option.substr(equals + 1));
    at = end;
  }
  return cell;
}

}  // namespace fusedrnn
