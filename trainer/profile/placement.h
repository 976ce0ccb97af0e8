// Before the first forward: every tensor of a model and of its batch is on one device, or the first that is not is
// named.
#pragma once
#include "modules/models/network/transformer.h"
#include "trainer/data/batch.h"

namespace limbeck::profile {

// ContractError names the tensor, where it is, where it should be and what to do.
void require_one_device(const models::Transformer& model, const data::Batch& batch);

}  // namespace limbeck::profile
