// Threads of a block as fibers: stacks that switch by hand on one operating-system thread.
#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber run entry(argument) from the start when it is resumed next.
  void reset(void (*entry)(void*), void* argument);
  // From the host: runs the fiber until it suspends.
  void resume();
  // From inside the fiber: back to the host. `for_good`: it will not be resumed.
  void suspend(bool for_good);

  struct State;

 private:
  State* state_;
};

}  // namespace simt
