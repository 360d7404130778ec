#include "planted.h"

namespace planted {

std::vector<Bug>& all() {
  static std::vector<Bug> bugs;
  return bugs;
}

}  // namespace planted
