// Streams and events of emulated devices: what is asked for is put off, and done as early or as late as its order allows.
//
// Whoever reads what another stream has still to write, or writes what another one has still to read, without an event
// between them, is likely to be found out: which stream goes on, and how far, is drawn anew at each call.
//
// The caller of each function has the turn (`driver.cpp`): one at a time.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

struct Stream;

// A place in a stream, recorded again and again.
struct Event {
    Stream* stream = nullptr;
    // Records that were asked for, and those that the stream has come to.
    long asked = 0, reached = 0;
};

struct Work {
    std::function<void()> run;
    // Not before this event was reached so often.
    std::shared_ptr<Event> after = nullptr;
    long times = 0;
    // Locked host memory that it copies from or to, or the recording that it is of.
    const void* memory = nullptr;
};

// What a device has of its own. Its context is a pointer to it.
struct Device {
    std::vector<Stream*> streams;
    size_t held = 0;
    long launches = 0;
    bool broken = false;
};

// What a stream was asked for while it recorded, in its order.
struct Graph {
    std::vector<std::function<void()>> work;
};

struct Stream {
    Device* device;
    std::deque<Work> work;
    // Where it records, if it does; and whether it was asked for what no recording can hold.
    std::unique_ptr<Graph> recording = nullptr;
    bool spoiled = false;
};

// Puts work into a stream.
void ask(Stream* stream, Work work);
// Some of what could be done now.
void wander(Device* device);
// All of a stream, and what that waits for.
void finish(Stream* stream);
// All of a device.
void finish(Device* device);
// What an event stands behind, when it had been asked for so often.
void reach(Event& event, long times);
