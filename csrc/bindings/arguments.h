// The arguments of a native call: given by name, in the order they are read, tensors as torch's. Two that are swapped
// raise: by place because there are only names, by name because the next one is expected, by value because each tensor
// is read with the type and the number of values it must have. (A dict keeps the order of a call: there is no search.)
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/bindings.h"

namespace geoloc_fast::bindings {

// torch's types, by the codes of DType and three more, and the names of what is asked of a tensor. Looked up by the
// first call, when torch is there: the modules load without it.
struct Torch {
  static constexpr const char* kNames[] = {"uint8", "float16", "bfloat16", "float32", "float64", "int64",
                                           "bool",  "dtype",   "data_ptr", "numel",   "shape",   "stride"};
  static constexpr int kTypes = 7;
  PyObject* types[kTypes] = {};
  PyObject *dtype, *data_ptr, *numel, *shape, *stride;

  static const Torch& get() {
    static Torch torch;
    if (torch.types[kTypes - 1]) return torch;
    const pybind11::module_ module = pybind11::module_::import("torch");
    PyObject** const names[] = {&torch.dtype, &torch.data_ptr, &torch.numel, &torch.shape, &torch.stride};
    for (int i = 0; i < 5; ++i) *names[i] = PyUnicode_InternFromString(kNames[kTypes + i]);
    for (int i = 0; i < kTypes; ++i) torch.types[i] = pybind11::object(module.attr(kNames[i])).release().ptr();
    return torch;
  }
};

template <typename T>
constexpr int kTypeCode = std::is_same_v<T, uint8_t>   ? 0
                          : std::is_same_v<T, float>   ? 3
                          : std::is_same_v<T, double>  ? 4
                          : std::is_same_v<T, int64_t> ? 5
                                                       : 6;

class Arguments {
 public:
  static constexpr int64_t kAnyCount = -1;

  const char* const op;

  Arguments(const char* of_op, const pybind11::kwargs& named) : op(of_op), named_(named.ptr()) {}

  int64_t whole(const char* name) { return checked(PyLong_AsLongLong(next(name))); }
  double number(const char* name) { return checked(PyFloat_AsDouble(next(name))); }
  bool flag(const char* name) { return checked(PyObject_IsTrue(next(name))) != 0; }

  std::vector<double> numbers(const char* name) { return pybind11::cast<std::vector<double>>(next(name)); }
  template <size_t N>
  std::array<int64_t, N> sizes(const char* name) {
    return tuple<N>(next(name));
  }

  // Contiguous memory of `count` values of T.
  template <typename T>
  T* values(const char* name, int64_t count) {
    return typed<T>(next(name), count);
  }

  // The same, or null for None.
  template <typename T>
  T* optional(const char* name, int64_t count) {
    PyObject* tensor = next(name);
    return tensor == Py_None ? nullptr : typed<T>(tensor, count);
  }

  void* workspace() { return values<uint8_t>("workspace", kAnyCount); }

  // A tensor of T with N sizes, which are written to `size`.
  template <typename T, size_t N>
  T* sized(const char* name, std::array<int64_t, N>& size) {
    PyObject* tensor = next(name);
    size = tuple<N>(attribute(tensor, torch_.shape));
    return typed<T>(tensor, kAnyCount);
  }

  // A tensor of `size` and any strides, or null for None.
  template <typename T, size_t N>
  T* strided(const char* name, const std::array<int64_t, N>& size, int64_t (&stride)[N]) {
    PyObject* tensor = next(name);
    if (tensor == Py_None) return nullptr;
    if (tuple<N>(attribute(tensor, torch_.shape)) != size) fail<pybind11::value_error>("has another shape");
    const std::array<int64_t, N> found = tuple<N>(called(tensor, torch_.stride));
    std::copy(found.begin(), found.end(), stride);
    return typed<T>(tensor, kAnyCount);
  }

  // Memory of a type that only the call knows.
  void* any(const char* name, DType& dtype, Sizes* size = nullptr, Sizes* stride = nullptr, int64_t count = kAnyCount) {
    PyObject* tensor = next(name);
    const auto end = torch_.types + static_cast<int>(DType::kFloat32) + 1;
    const auto type = std::find(torch_.types, end, attribute(tensor, torch_.dtype).ptr());
    if (type == end) fail<pybind11::type_error>("is of a type without a kernel");
    dtype = static_cast<DType>(type - torch_.types);
    if (size) *size = tuple<4>(attribute(tensor, torch_.shape));
    if (stride) *stride = tuple<4>(called(tensor, torch_.stride));
    return address(tensor, count);
  }

  // After the last argument: another is an error.
  void end() {
    PyObject *key, *value;
    if (PyDict_Next(named_, &at_, &key, &value)) throw pybind11::type_error(unexpected("no more arguments", key));
  }

 private:
  PyObject* next(const char* name) {
    PyObject *key = nullptr, *value = nullptr;
    const bool there = PyDict_Next(named_, &at_, &key, &value);
    if (!there || PyUnicode_CompareWithASCIIString(key, name) != 0)
      throw pybind11::type_error(unexpected("argument '" + std::string(name) + "' next", there ? key : nullptr));
    name_ = name;
    return value;
  }

  std::string unexpected(const std::string& expected, PyObject* key) const {
    return std::string(op) + ": expected " + expected + ", got " +
           (key ? "'" + std::string(pybind11::str(key)) + "'" : "none");
  }

  template <typename Error>
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(std::string(op) + ": " + name_ + " " + what);
  }

  template <typename Number>
  static Number checked(Number number) {
    if (number == static_cast<Number>(-1) && PyErr_Occurred()) throw pybind11::error_already_set();
    return number;
  }

  pybind11::object found(PyObject* object) const {
    if (object) return pybind11::reinterpret_steal<pybind11::object>(object);
    PyErr_Clear();
    fail<pybind11::type_error>("is not a tensor");
  }
  pybind11::object attribute(PyObject* tensor, PyObject* name) const { return found(PyObject_GetAttr(tensor, name)); }
  pybind11::object called(PyObject* tensor, PyObject* name) const {
    return found(PyObject_CallMethodNoArgs(tensor, name));
  }

  template <size_t N>
  std::array<int64_t, N> tuple(pybind11::handle given) const {
    if (!PyTuple_Check(given.ptr()) || PyTuple_GET_SIZE(given.ptr()) != N)
      fail<pybind11::value_error>("has not " + std::to_string(N) + " sizes");
    std::array<int64_t, N> result;
    for (size_t i = 0; i < N; ++i) result[i] = checked(PyLong_AsLongLong(PyTuple_GET_ITEM(given.ptr(), i)));
    return result;
  }

  template <typename T>
  T* typed(PyObject* tensor, int64_t count) const {
    constexpr int code = kTypeCode<std::remove_const_t<T>>;
    if (attribute(tensor, torch_.dtype).ptr() != torch_.types[code])
      fail<pybind11::type_error>(std::string("is not of torch.") + Torch::kNames[code]);
    return static_cast<T*>(address(tensor, count));
  }

  void* address(PyObject* tensor, int64_t count) const {
    if (count != kAnyCount) {
      const int64_t given = checked(PyLong_AsLongLong(called(tensor, torch_.numel).ptr()));
      if (given != count)
        fail<pybind11::value_error>("has " + std::to_string(given) + " values, expected " + std::to_string(count));
    }
    return reinterpret_cast<void*>(checked(PyLong_AsLongLong(called(tensor, torch_.data_ptr).ptr())));
  }

  const Torch& torch_ = Torch::get();
  PyObject* const named_;  // borrowed: the call's own
  Py_ssize_t at_ = 0;
  const char* name_ = "";
};

// Ends the arguments with `threads` and runs `kernel` without Python's lock.
template <typename Kernel>
Status run_cpu(Arguments& a, Kernel kernel) {
  const int threads = static_cast<int>(a.whole("threads"));
  a.end();
  pybind11::gil_scoped_release release;
  return kernel(threads);
}

// Ends them with `device` and `stream`.
template <typename Kernel>
Status run_cuda(Arguments& a, Kernel kernel) {
  const int device = static_cast<int>(a.whole("device"));
  void* const stream = reinterpret_cast<void*>(a.whole("stream"));
  a.end();
  pybind11::gil_scoped_release release;
  return kernel(device, stream);
}

}  // namespace geoloc_fast::bindings
