#include "engine/result.h"

#include <utility>

#include "text/generation.h"

namespace atp {

Result make_result(const Generation & generation, Report report) {
    report.n_decoded = generation.n_decoded();
    return {generation.text(), generation.tokens(), generation.finish_reason(), "", std::move(report)};
}

}  // namespace atp
