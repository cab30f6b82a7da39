// ATen's operators. Costs seconds to parse without the precompiled header: include it from .cpp files only.
#pragma once
#include <ATen/ATen.h>

#include "src/tensor/tensor.h"
