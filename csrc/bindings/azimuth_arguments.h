// How Python hands strips to the azimuth operators of either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/arguments.h"
#include "geoloc_fast/azimuth_crop.h"

namespace geoloc_fast::bindings {

inline StripTensor read_strips(Arguments& a, const char* name) {
  DType dtype;
  Sizes size, stride;
  const void* data = a.any(name, dtype, &size, &stride);
  return {data, dtype, size[0], size[1], size[2], size[3], {stride[0], stride[1], stride[2], stride[3]}};
}

// What every call begins with.
template <typename Params>
void read_common(Arguments& a, Params& p) {
  p.query = read_strips(a, "query");
  p.strips = read_strips(a, "strips");
  p.query_width = a.optional<const int64_t>("query_width", p.query.items);
  p.select = static_cast<Selection>(a.whole("select"));
  p.device_scale = a.optional<const double>("scale", 1);
  p.tau = a.number("tau");
}

// The gradients with respect to both; `scales` are those with respect to the scale.
template <typename Params>
void read_gradients(Arguments& a, Params& p, int64_t scales) {
  const auto values = [](const StripTensor& t) { return t.items * t.channels * t.height * t.columns; };
  p.grad_query = a.values<float>("grad_query", values(p.query));
  p.grad_strips = a.values<float>("grad_strips", values(p.strips));
  p.grad_scale = a.optional<double>("grad_scale", scales);
}

inline void read(Arguments& a, AzimuthMatchParams& p) {
  read_common(a, p);
  const int64_t batch = p.query.items, references = p.strips.items, columns = p.strips.columns;
  p.noise = a.strided<const float, 3>("noise", {batch, references, columns}, p.noise_stride);
  p.score = a.values<float>("score", batch * references);
  p.shift = a.values<int64_t>("shift", batch * references);
  p.slope = a.optional<float>("slope", batch * columns * references);
  p.scale_slope = a.optional<float>("scale_slope", batch * references);
  p.plan = static_cast<AzimuthPlan>(a.whole("plan"));
  p.workspace = a.workspace();
}

inline void read(Arguments& a, AzimuthMatchBackwardParams& p) {
  read_common(a, p);
  const int64_t pairs = p.query.items * p.strips.items;
  p.grad_score = a.values<const float>("grad_score", pairs);
  p.score = a.values<const float>("score", pairs);
  p.shift = a.values<const int64_t>("shift", pairs);
  p.slope = a.optional<const float>("slope", pairs * p.strips.columns);
  p.scale_slope = a.optional<const float>("scale_slope", pairs);
  read_gradients(a, p, 1);
  p.plan = static_cast<AzimuthPlan>(a.whole("plan"));
  p.workspace = a.workspace();
}

inline void read(Arguments& a, AzimuthCropParams& p) {
  read_common(a, p);
  const StripTensor& q = p.query;
  p.noise = a.strided<const float, 2>("noise", {q.items, p.strips.columns}, p.noise_stride);
  p.crop = a.values<float>("crop", q.items * q.channels * q.height * q.columns);
  p.score = a.values<float>("score", q.items);
  p.shift = a.values<int64_t>("shift", q.items);
  p.workspace = a.workspace();
}

inline void read(Arguments& a, AzimuthCropBackwardParams& p) {
  read_common(a, p);
  const StripTensor& q = p.query;
  p.noise = a.strided<const float, 2>("noise", {q.items, p.strips.columns}, p.noise_stride);
  p.grad_crop = a.values<const float>("grad_crop", q.items * q.channels * q.height * q.columns);
  p.grad_score = a.values<const float>("grad_score", q.items);
  p.score = a.values<const float>("score", q.items);
  p.shift = a.values<const int64_t>("shift", q.items);
  read_gradients(a, p, q.items);
  p.workspace = a.workspace();
}

template <typename Params>
void define_cpu(pybind11::module_& m, const char* op, Status (*kernel)(const Params&, int)) {
  m.def(op, [=](const pybind11::kwargs& named) {
    Arguments a(op, named);
    Params p{};
    read(a, p);
    p.scale = p.device_scale ? *p.device_scale : 1.0;
    check(run_cpu(a, [&](int threads) { return kernel(p, threads); }), op);
  });
}

template <typename Params>
std::string given(const Arguments&, const Params& p) {
  const auto shape = [](const StripTensor& t) { return shape_text(Sizes{t.items, t.channels, t.height, t.columns}); };
  return "query " + shape(p.query) + ", strips " + shape(p.strips);
}

inline AzimuthMatchSize match_size(const Sizes& query, const Sizes& strips, bool mixed_widths, int select, bool slope,
                                   bool backward) {
  const int64_t values = query[1] * query[2];
  return {query[0], strips[0], values, query[3], strips[3], mixed_widths, static_cast<Selection>(select),
          slope,    backward};
}

}  // namespace geoloc_fast::bindings
