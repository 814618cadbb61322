// The order of work in the streams of a device: see streams.h.

#include "streams.h"

#include <random>

namespace {

std::mt19937 order(1);

// Of eight: how likely a stream goes on, for some calls. 0 puts everything off, 8 does all that is possible at once.
unsigned eagerness() {
    static unsigned calls = 0, eagerness = 4;
    if (calls++ % 32 == 0) eagerness = order() % 9;
    return eagerness;
}

// Does what comes next in a stream, and before that what it waits for: always recorded before it was waited for, so this
// ends.
void advance(Stream* stream) {
    if (const Work& next = stream->work.front(); next.after) {
        const std::shared_ptr<Event> after = next.after;
        reach(*after, next.times);
    }
    const Work work = std::move(stream->work.front());
    stream->work.pop_front();
    if (work.run) work.run();
}

}  // namespace

void ask(Stream* stream, Work work) {
    stream->work.push_back(std::move(work));
    wander(stream->device);
}

void wander(Device* device) {
    const unsigned eager = eagerness();
    for (Stream* stream : device->streams)
        while (!stream->work.empty() && order() % 8 < eager) {
            const Work& next = stream->work.front();
            if (next.after && next.after->reached < next.times) break;
            advance(stream);
        }
}

void finish(Stream* stream) {
    while (!stream->work.empty()) advance(stream);
}

void finish(Device* device) {
    for (Stream* stream : device->streams) finish(stream);
}

void reach(Event& event, long times) {
    while (event.reached < times) advance(event.stream);
}
