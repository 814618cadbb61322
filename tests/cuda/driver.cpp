// The part of the CUDA driver's interface that the server uses, over the memory and the threads of this process. Device
// pointers are host pointers with red zones. Work is done when its stream comes to it (streams.h): who writes locked host
// memory too early, or gives it back, is found out, and so is who does not make one stream wait for another.
//
// Environment: EMULATOR_DEVICES of them (1), each with EMULATOR_MEMORY bytes (4 GiB), memory pools unless EMULATOR_POOLS is 0,
// and recordings of streams unless EMULATOR_GRAPHS is 0; the device EMULATOR_BREAK_DEVICE (0) breaks for good at its launch
// number EMULATOR_BREAK_AT (0: never).

#include "emulate.h"
#include "streams.h"

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.inc"

// What kernels call their dynamic shared memory; the most that a block may have.
constexpr size_t SHARED_BYTES = 48 * 1024;
float row[SHARED_BYTES / sizeof(float)];
float shared[SHARED_BYTES / sizeof(float)];
Vector<u16> shared_vectors[SHARED_BYTES / sizeof(Vector<u16>)];
void* const dynamic_shared[] = {row, shared, shared_vectors};

using Status = int;
constexpr Status SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500,
                 ILLEGAL_STATE = 401, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801,
                 NOT_RECORDABLE = 900, SPOILED = 901;

namespace {

using Call = std::function<void()>;

struct Kernel {
    std::function<Call(void**)> with;
};

// Reads each parameter, as the kernel's type says, when the launch is asked for.
template <typename... Parameters, size_t... Index>
std::function<Call(void**)> unpacked(void (*kernel)(Parameters...), std::index_sequence<Index...>) {
    return [kernel](void** parameters) -> Call {
        const std::tuple values(*static_cast<std::decay_t<Parameters>*>(parameters[Index])...);
        return [kernel, values] { std::apply(kernel, values); };
    };
}

template <typename... Parameters> Kernel made(void (*kernel)(Parameters...)) {
    return Kernel{unpacked(kernel, std::index_sequence_for<Parameters...>())};
}

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all = {
#define KERNEL(name) {#name, made(name)},
#include "kernels.list"
#undef KERNEL
    };
    return all;
}

constexpr int MOST_DEVICES = 8;
Device devices[MOST_DEVICES];
thread_local Device* current = devices;
// The stream in which this thread records: until that is done, it must not ask for what waits for a device.
thread_local Stream* recording = nullptr;

// Blocks between red zones, which are looked at when memory is given back.
constexpr size_t ZONE = 256;
constexpr unsigned char RED = 0xa5;
struct Block {
    size_t size;
    Device* device;
    // The stream that asked for it has come to it.
    bool given;
};
std::map<unsigned char*, Block> blocks;
size_t ceiling = 0;
// Locked host memory.
std::map<const unsigned char*, size_t> locked;
// Streams of several threads take turns.
std::mutex turn;

size_t setting(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::abort();
}

Stream* stream_of(void* stream) { return static_cast<Stream*>(stream); }

// Whether a stream records, which then is for nothing: what is asked for has no place in a recording.
bool spoils(Stream* stream) {
    if (stream->recording) stream->spoiled = true;
    return stream->spoiled;
}

// Whether this thread records, which then is for nothing: it asks for what waits for a device.
bool spoils() { return recording && spoils(recording); }

// Puts work into a stream that a broken device does not do; or records it.
void compute(Stream* stream, std::function<void()> run, const void* memory = nullptr) {
    Device* device = stream->device;
    if (stream->recording) return stream->recording->work.push_back(std::move(run));
    Work work;
    work.run = [device, run] {
        if (!device->broken) run();
    };
    work.memory = memory;
    ask(stream, work);
}

bool is_locked(const void* memory) {
    auto after = locked.upper_bound(static_cast<const unsigned char*>(memory));
    return after != locked.begin() && static_cast<const unsigned char*>(memory) < std::prev(after)->first + std::prev(after)->second;
}

void check(unsigned char* block, size_t size) {
    for (size_t i = 0; i < ZONE; ++i)
        if (block[-1 - ptrdiff_t(i)] != RED || block[size + i] != RED) fail("a kernel wrote beside a block");
}

// What a copy reads or writes on a device.
unsigned char* inside(uint64_t pointer, size_t bytes) {
    auto* const first = reinterpret_cast<unsigned char*>(pointer);
    auto block = blocks.upper_bound(first);
    if (block == blocks.begin()) fail("a copy beside all memory");
    --block;
    if (first + bytes > block->first + block->second.size) fail("a copy beside a block");
    if (!block->second.given) fail("a copy in memory that its stream has not come to");
    return first;
}

Status allocate(uint64_t* pointer, size_t bytes, Stream* stream) {
    if (bytes == 0) return INVALID_VALUE;
    // What is still to be given back may be enough.
    if (bytes > ceiling - current->held) finish(current);
    if (bytes > ceiling - current->held) return OUT_OF_MEMORY;
    auto* whole = static_cast<unsigned char*>(std::aligned_alloc(256, (bytes + 2 * ZONE + 255) / 256 * 256));
    std::memset(whole, RED, bytes + 2 * ZONE);
    // Whoever reads what was never written reads NaNs.
    std::memset(whole + ZONE, 0xff, bytes);
    unsigned char* const first = whole + ZONE;
    blocks[first] = Block{bytes, current, stream == nullptr};
    if (stream) ask(stream, Work{[first] { blocks.at(first).given = true; }});
    current->held += bytes;
    *pointer = reinterpret_cast<uint64_t>(first);
    return SUCCESS;
}

void release(unsigned char* first) {
    const Block block = blocks.at(first);
    check(first, block.size);
    block.device->held -= block.size;
    // Whoever still reads it reads NaNs.
    std::memset(first, 0xff, block.size);
    std::free(first - ZONE);
    blocks.erase(first);
}

Status state(const Device* device) { return device->broken ? ILLEGAL_ADDRESS : SUCCESS; }

}  // namespace

extern "C" {

Status cuInit(unsigned) {
    ceiling = setting("EMULATOR_MEMORY", size_t(4) << 30);
    return SUCCESS;
}
Status cuDriverGetVersion(int* version) { return *version = 12040, SUCCESS; }
Status cuDeviceGetCount(int* count) {
    return *count = min(int(setting("EMULATOR_DEVICES", 1)), MOST_DEVICES), SUCCESS;
}
Status cuDeviceGet(int* device, int ordinal) {
    int count = 0;
    cuDeviceGetCount(&count);
    if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
Status cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "Emulated"), SUCCESS; }
Status cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = ceiling, SUCCESS; }
// Compute capability 8.0.
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    constexpr int MAJOR = 75, POOLS = 115;
    *value = attribute == MAJOR ? int(setting("EMULATOR_MAJOR", 8))
        : attribute == POOLS    ? int(setting("EMULATOR_POOLS", 1))
                                : 0;
    return SUCCESS;
}
Status cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &devices[device], SUCCESS; }
Status cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Status cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
Status cuCtxSetCurrent(void* context) { return current = static_cast<Device*>(context), SUCCESS; }
Status cuStreamSynchronize(void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    finish(stream_of(stream));
    return state(stream_of(stream)->device);
}
Status cuCtxSynchronize() {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils()) return NOT_RECORDABLE;
    finish(current);
    return state(current);
}
Status cuStreamCreate(void** stream, unsigned) {
    const std::lock_guard<std::mutex> mine(turn);
    current->streams.push_back(new Stream{current, {}});
    return *stream = current->streams.back(), SUCCESS;
}
Status cuStreamDestroy_v2(void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    auto& streams = stream_of(stream)->device->streams;
    finish(stream_of(stream));
    streams.erase(std::find(streams.begin(), streams.end(), stream_of(stream)));
    return delete stream_of(stream), SUCCESS;
}
Status cuStreamWaitEvent(void* stream, void* event, unsigned) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    const auto& after = *static_cast<std::shared_ptr<Event>*>(event);
    // One that was never recorded is no wait.
    if (after->asked > 0) ask(stream_of(stream), Work{nullptr, after, after->asked});
    return state(stream_of(stream)->device);
}
Status cuEventCreate(void** event, unsigned) {
    return *event = new std::shared_ptr<Event>(std::make_shared<Event>()), SUCCESS;
}
Status cuEventRecord(void* event, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    const auto& recorded = *static_cast<std::shared_ptr<Event>*>(event);
    if (recorded->stream && recorded->stream != stream) fail("an event is recorded in two streams");
    recorded->stream = stream_of(stream);
    const long times = ++recorded->asked;
    ask(recorded->stream, Work{[recorded, times] { recorded->reached = times; }});
    return state(recorded->stream->device);
}
Status cuEventSynchronize(void* event) {
    const std::lock_guard<std::mutex> mine(turn);
    Event& awaited = **static_cast<std::shared_ptr<Event>*>(event);
    if (!awaited.stream) return SUCCESS;
    reach(awaited, awaited.asked);
    return state(awaited.stream->device);
}
Status cuEventQuery(void* event) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils()) return NOT_RECORDABLE;
    const Event& asked = **static_cast<std::shared_ptr<Event>*>(event);
    if (!asked.stream) return SUCCESS;
    wander(asked.stream->device);
    return asked.stream->device->broken ? ILLEGAL_ADDRESS : asked.reached < asked.asked ? NOT_READY : SUCCESS;
}
Status cuEventDestroy_v2(void* event) { return delete static_cast<std::shared_ptr<Event>*>(event), SUCCESS; }
Status cuMemGetInfo_v2(size_t* free, size_t* total) {
    const std::lock_guard<std::mutex> mine(turn);
    return *free = ceiling - current->held, *total = ceiling, SUCCESS;
}

Status cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    if (current->broken) return ILLEGAL_ADDRESS;
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils()) return NOT_RECORDABLE;
    return allocate(pointer, bytes, nullptr);
}
Status cuMemAllocAsync(uint64_t* pointer, size_t bytes, void* stream) {
    if (current->broken) return ILLEGAL_ADDRESS;
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    return allocate(pointer, bytes, stream_of(stream));
}
// Waits for the whole device, as the driver's does.
Status cuMemFree_v2(uint64_t pointer) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils()) return NOT_RECORDABLE;
    const auto block = blocks.find(reinterpret_cast<unsigned char*>(pointer));
    if (block == blocks.end()) return INVALID_VALUE;
    finish(block->second.device);
    return release(block->first), SUCCESS;
}
Status cuMemFreeAsync(uint64_t pointer, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    auto* const first = reinterpret_cast<unsigned char*>(pointer);
    if (blocks.find(first) == blocks.end()) return INVALID_VALUE;
    return ask(stream_of(stream), Work{[first] { release(first); }}), SUCCESS;
}
Status cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils()) return NOT_RECORDABLE;
    *pointer = std::malloc(bytes);
    locked[static_cast<unsigned char*>(*pointer)] = bytes;
    return SUCCESS;
}
Status cuMemFreeHost(void* pointer) {
    const std::lock_guard<std::mutex> mine(turn);
    const auto* begin = static_cast<unsigned char*>(pointer);
    const auto* end = begin + locked[begin];
    for (const Device& device : devices)
        for (const Stream* stream : device.streams)
            for (const Work& work : stream->work)
                if (work.memory >= begin && work.memory < end)
                    fail("locked memory is given back before a device is done with it");
    locked.erase(begin);
    return std::free(pointer), SUCCESS;
}
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    // The driver could record it, but memory of the host may be gone when that is played.
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    if (is_locked(from)) {
        compute(stream_of(stream), [=] { std::memcpy(inside(to, bytes), from, bytes); }, from);
    } else {
        // The driver takes it before it returns, and copies it in its turn.
        const auto* begin = static_cast<const char*>(from);
        const auto taken = std::make_shared<std::vector<char>>(begin, begin + bytes);
        compute(stream_of(stream), [=] { std::memcpy(inside(to, bytes), taken->data(), bytes); });
    }
    return state(stream_of(stream)->device);
}
Status cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    compute(stream_of(stream), [=] { std::memcpy(to, inside(from, bytes), bytes); }, to);
    // Into memory that is not locked the driver copies at once.
    if (!is_locked(to)) finish(stream_of(stream));
    return state(stream_of(stream)->device);
}
Status cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    compute(stream_of(stream), [=] { std::memset(inside(to, bytes), value, bytes); });
    return state(stream_of(stream)->device);
}

// The module is this library; that the other one assembles is checked by the assembler.
Status cuModuleLoadData(void** module, const void* image) {
    if (!std::strstr(static_cast<const char*>(image), ".version")) return INVALID_VALUE;
    return *module = &kernels(), SUCCESS;
}
Status cuModuleUnload(void*) { return SUCCESS; }
Status cuModuleGetFunction(void** function, void*, const char* name) {
    const auto kernel = kernels().find(name);
    if (kernel == kernels().end()) return NOT_FOUND;
    return *function = &kernel->second, SUCCESS;
}
Status cuFuncSetAttribute(void*, int, int) { return SUCCESS; }

Status cuLaunchKernel(
    void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
    void* stream, void** parameters, void**) {
    auto* device = stream_of(stream)->device;
    if (device->broken) return ILLEGAL_ADDRESS;
    if (gx * gy * gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024) return INVALID_VALUE;
    // What a kernel may use without asking for more.
    if (shared_bytes > SHARED_BYTES) return INVALID_VALUE;
    const std::lock_guard<std::mutex> mine(turn);
    const Call call = static_cast<Kernel*>(function)->with(parameters);
    compute(stream_of(stream), [=] {
        ++device->launches;
        if (device == &devices[setting("EMULATOR_BREAK_DEVICE", 0)]
            && size_t(device->launches) == setting("EMULATOR_BREAK_AT", 0)) {
            device->broken = true;
            return;
        }
        launch({gx, gy, gz}, {bx, by, bz}, [&] {
            for (void* memory : dynamic_shared) std::memset(memory, 0xff, shared_bytes);
        }, call);
    });
    return SUCCESS;
}

// Recordings. Streams that record do nothing: what they are asked for is done each time that the recording is played.
Status cuStreamBeginCapture_v2(void* stream, int mode) {
    constexpr int GLOBAL = 0;
    const std::lock_guard<std::mutex> mine(turn);
    if (setting("EMULATOR_GRAPHS", 1) == 0) return NOT_SUPPORTED;
    // That would be the end of a recording whenever another thread allocates.
    if (mode == GLOBAL || stream_of(stream)->recording || recording) return ILLEGAL_STATE;
    recording = stream_of(stream);
    recording->recording = std::make_unique<Graph>();
    return SUCCESS;
}
Status cuStreamEndCapture(void* stream, void** graph) {
    const std::lock_guard<std::mutex> mine(turn);
    *graph = nullptr;
    if (recording != stream || !recording->recording) return ILLEGAL_STATE;
    auto recorded = std::move(recording->recording);
    const bool spoiled = std::exchange(recording->spoiled, false);
    recording = nullptr;
    if (spoiled) return SPOILED;
    return *graph = recorded.release(), SUCCESS;
}
Status cuGraphInstantiateWithFlags(void** playable, void* graph, unsigned long long) {
    const std::lock_guard<std::mutex> mine(turn);
    return *playable = new Graph(*static_cast<Graph*>(graph)), SUCCESS;
}
Status cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }
Status cuGraphExecDestroy(void* playable) {
    const std::lock_guard<std::mutex> mine(turn);
    // The driver may wait for it or not.
    for (const Device& device : devices)
        for (const Stream* stream : device.streams)
            for (const Work& work : stream->work)
                if (work.memory == playable) fail("a recording goes before it has been played");
    return delete static_cast<Graph*>(playable), SUCCESS;
}
Status cuGraphLaunch(void* playable, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    if (spoils(stream_of(stream))) return NOT_RECORDABLE;
    // One work after the other, so that others may come between them.
    for (const auto& work : static_cast<Graph*>(playable)->work) compute(stream_of(stream), work, playable);
    return state(stream_of(stream)->device);
}

Status cuGetErrorName(Status status, const char** name) {
    *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
        : status == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
        : status == INVALID_DEVICE  ? "CUDA_ERROR_INVALID_DEVICE"
                                    : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
Status cuGetErrorString(Status status, const char** text) { return cuGetErrorName(status, text); }

}  // extern "C"

int emulated_work(void* stream, std::function<void()> work) {
    const std::lock_guard<std::mutex> mine(turn);
    compute(stream_of(stream), std::move(work));
    return state(stream_of(stream)->device);
}
