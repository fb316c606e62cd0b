// Stands in for libcuda.so.1: a CUDA driver of version 11.8 that can do nothing but say so.

#include <string.h>

int cuInit(unsigned flags) { return flags != 0; }

int cuDriverGetVersion(int* version) {
  *version = 11080;
  return 0;
}

int cuGetProcAddress_v2(const char* name, void** at, int version, unsigned long long flags, int* status) {
  (void)version, (void)flags, (void)status;
  *at = (void*)cuInit;
  if (strcmp(name, "cuDriverGetVersion") == 0) *at = (void*)cuDriverGetVersion;
  if (strncmp(name, "cuGetProcAddress", 16) == 0) *at = (void*)cuGetProcAddress_v2;
  return strstr(name, "ExportTable") ? 500 : 0;  // CUDA_ERROR_NOT_FOUND
}
