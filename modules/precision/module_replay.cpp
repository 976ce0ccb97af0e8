#include "modules/precision/module_replay.h"

namespace limbeck::precision {

namespace {
thread_local ModuleReplay* active_replay = nullptr;
}  // namespace

Replaying::Replaying(ModuleReplay& replay) : before_(active_replay) { active_replay = &replay; }

Replaying::~Replaying() { active_replay = before_; }

ModuleReplay* current_replay() { return active_replay; }

}  // namespace limbeck::precision
