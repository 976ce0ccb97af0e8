// What a row has beside its speed: the bytes of its files, and its quality on held-out data. In a process of its own,
// so that the peak of the other one is that of the work alone.
#pragma once
#include <nlohmann/json.hpp>

#include "trainer/profile/measured_row.h"

namespace limbeck::profile {

// {"bytes_on_disk", "bytes_on_disk_reason", "quality", "quality_reason"}: a number or its reason. Quality is what
// `limbeck eval` says of the recipe with its student stored so.
nlohmann::ordered_json assessment(const RowRequest& request);

}  // namespace limbeck::profile
