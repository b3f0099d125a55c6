// rome_fast._facts: how the native library was built. No torch here, so it opens with any torch.
// pybind11 has no limited API, so the wheel that serves every Python has the same module in plain C
// (Py_LIMITED_API is defined there).
#include "kernels/cpu/isa.h"

namespace {

struct Fact {
  const char* name;
  const char* value;
};

constexpr int kMaxFacts = 5;
constexpr const char* kSummary = "Facts of the native build.";
constexpr const char* kHelp =
    "compiler, torch at build, SIMD variant in use; nvcc and architectures, or why_no_cuda";

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

// Fills `facts` and says how many there are.
int list_facts(Fact (&facts)[kMaxFacts]) {
  int n = 0;
  facts[n++] = {"compiler", compiler()};
  facts[n++] = {"torch", ROME_FAST_TORCH_VERSION};
  facts[n++] = {"simd", rome_fast::isa_name(rome_fast::active_isa())};
#ifdef ROME_FAST_WHY_NO_CUDA
  facts[n++] = {"why_no_cuda", ROME_FAST_WHY_NO_CUDA};
#else
  facts[n++] = {"nvcc", ROME_FAST_NVCC_VERSION};
  facts[n++] = {"cuda_archs", ROME_FAST_CUDA_ARCHS};
#endif
  return n;
}

}  // namespace

#ifdef Py_LIMITED_API

#include <Python.h>

namespace {

PyObject* build_facts(PyObject*, PyObject*) {
  Fact facts[kMaxFacts];
  const int n = list_facts(facts);
  PyObject* result = PyDict_New();
  for (int i = 0; result != nullptr && i < n; ++i) {
    PyObject* value = PyUnicode_FromString(facts[i].value);
    if (value == nullptr || PyDict_SetItemString(result, facts[i].name, value) != 0) {
      Py_CLEAR(result);
    }
    Py_XDECREF(value);
  }
  return result;
}

PyMethodDef methods[] = {{"build_facts", build_facts, METH_NOARGS, kHelp}, {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_facts", kSummary, 0, methods, {}, {}, {}, {}};

}  // namespace

PyMODINIT_FUNC PyInit__facts() { return PyModuleDef_Init(&module); }

#else

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_facts, m) {
  m.doc() = kSummary;
  m.def(
      "build_facts",
      [] {
        Fact facts[kMaxFacts];
        const int n = list_facts(facts);
        py::dict result;
        for (int i = 0; i < n; ++i) result[facts[i].name] = facts[i].value;
        return result;
      },
      kHelp);
}

#endif
