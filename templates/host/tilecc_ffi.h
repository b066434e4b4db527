// Arguments and errors of functions in the tvm-ffi ABI, from its C header alone.
//
// The C++ headers of tvm-ffi run initialisers when a library is loaded and need libtvm_ffi for that. With the C
// header its two functions stay weak: a C program loads the same library without tvm-ffi installed.
#pragma once
#include <dlfcn.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <cstdint>
#include <string>

#pragma weak TVMFFIErrorSetRaisedFromCStr
#pragma weak TVMFFIEnvGetStream

#define TILECC_FFI_EXPORT extern "C" __attribute__((visibility("default")))

namespace tilecc_ffi {

// A failure: one of the TILECC_ codes, the kind of Python exception, and the text.
struct Failure {
  int32_t code;
  const char* kind;
  std::string text;
};

// libtvm_ffi may have been loaded without making its symbols global.
template <class F>
F find(F linked, const char* name) {
  if (linked != nullptr) return linked;
  void* library = dlopen("libtvm_ffi.so", RTLD_LAZY | RTLD_NOLOAD);
  return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}

inline void* current_stream(int device) {
  static const auto get = find(&TVMFFIEnvGetStream, "TVMFFIEnvGetStream");
  return get ? get(kDLCUDA, device) : nullptr;
}

// Runs the body of an exported function; a Failure becomes the caller's exception.
template <class F>
int safe_call(F body) {
  try {
    body();
    return 0;
  } catch (const Failure& failure) {
    static const auto set = find(&TVMFFIErrorSetRaisedFromCStr, "TVMFFIErrorSetRaisedFromCStr");
    if (set) set(failure.kind, failure.text.c_str());
    return -1;
  }
}

// The arguments of one call, checked by position. `signature` is the text of type errors.
class Arguments {
 public:
  Arguments(const char* signature, const TVMFFIAny* values, int32_t count, int32_t expected, int32_t type_error_code)
      : signature_(signature), values_(values), code_(type_error_code) {
    if (count != expected)
      throw Failure{code_, "TypeError",
                    std::string(signature) + ": expected " + std::to_string(expected) + " arguments, got " +
                        std::to_string(count)};
  }

  bool is_none(int32_t i) const { return values_[i].type_index == kTVMFFINone; }

  // A tensor arrives as a borrowed DLTensor or as an object that owns one.
  const DLTensor& tensor(int32_t i) const {
    const TVMFFIAny& v = values_[i];
    if (v.type_index == kTVMFFIDLTensorPtr) return *static_cast<const DLTensor*>(v.v_ptr);
    if (v.type_index == kTVMFFITensor) return *TVMFFITensorGetDLTensorPtr(v.v_obj);
    throw wrong(i, "a tensor");
  }

  int64_t integer(int32_t i, int64_t least, int64_t most) const {
    const TVMFFIAny& v = values_[i];
    if (v.type_index != kTVMFFIInt && v.type_index != kTVMFFIBool) throw wrong(i, "an int");
    if (v.v_int64 < least || v.v_int64 > most)
      throw Failure{code_, "ValueError",
                    std::string(signature_) + ": argument " + std::to_string(i) + " is " + std::to_string(v.v_int64) +
                        ", allowed are " + std::to_string(least) + " to " + std::to_string(most)};
    return v.v_int64;
  }

 private:
  Failure wrong(int32_t i, const char* what) const {
    return {code_, "TypeError", std::string(signature_) + ": argument " + std::to_string(i) + " must be " + what};
  }

  const char* signature_;
  const TVMFFIAny* values_;
  int32_t code_;
};

inline int64_t elements(const DLTensor& t) {
  int64_t count = 1;
  for (int32_t i = 0; i < t.ndim; i++) count *= t.shape[i];
  return count;
}

inline bool contiguous(const DLTensor& t) {
  if (t.strides == nullptr) return true;
  int64_t expected = 1;
  for (int32_t i = t.ndim - 1; i >= 0; i--) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

inline void* data(const DLTensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

}  // namespace tilecc_ffi
