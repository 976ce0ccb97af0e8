// What limbeck quantize shows of budgets: the exchanges that improved a mix, what it measures, and the curve over
// several budgets.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/quantize/exchange.h"
#include "trainer/quantize/joint_measure.h"

namespace limbeck::cli {

struct CurvePoint {
  quantize::Budget budget;
  quantize::Exchanged found;
  quantize::JointMeasure measured;  // on held-out rows
};

// By budget: bytes, what is predicted, what is measured.
std::string curve_table(const quantize::FormatTable& table, const std::vector<CurvePoint>& points, int width);
// By module: its format within each budget.
std::string curve_mixes(const quantize::FormatTable& table, const std::vector<CurvePoint>& points, int width);
nlohmann::ordered_json curve_json(const quantize::FormatTable& table, const std::vector<CurvePoint>& points);

std::string measure_table(const quantize::JointMeasure& measure, int width);
nlohmann::ordered_json measure_json(const quantize::JointMeasure& measure);
nlohmann::ordered_json exchange_json(const quantize::Exchanged& exchanged);
std::string exchange_line(const quantize::Exchanged& exchanged);

}  // namespace limbeck::cli
