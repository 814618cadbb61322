"""Compiles the device code to PTX with NVRTC, which needs neither a GPU nor a driver.

    pip install nvidia-cuda-nvrtc-cu12==12.4.127
    python src/kernel/cuda/device/compile.py             # writes kernels.ptx
    python src/kernel/cuda/device/compile.py --check     # says whether it is what would be written

PTX of CUDA 12.4 for compute capability 8.0 is what a driver from 550 on makes code of, for every GPU since Ampere.
"""

import ctypes
import glob
import hashlib
import os
import sys

PARTS = ["types", "norm", "activation", "attention", "pool"]
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--fmad=true", "--extra-device-vectorization"]
HERE = os.path.dirname(os.path.abspath(__file__))


def library():
    for folder in sys.path:
        for path in glob.glob(os.path.join(folder, "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")):
            return ctypes.CDLL(path)
    sys.exit("NVRTC is not here: pip install nvidia-cuda-nvrtc-cu12==12.4.127")


def source():
    return "".join(open(os.path.join(HERE, part + ".cu")).read() for part in PARTS)


def compile_ptx(text):
    nvrtc = library()
    program = ctypes.c_void_p()

    def call(name, *arguments):
        status = getattr(nvrtc, name)(*arguments)
        if status != 0:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{name}: {status}\n{log.value.decode()}")

    # In the program's own words: half is a type of the compiler otherwise.
    prelude = '#define INFINITY __int_as_float(0x7f800000)\n'
    call("nvrtcCreateProgram", ctypes.byref(program), (prelude + text).encode(), b"kernels.cu", 0, None, None)
    options = (ctypes.c_char_p * len(OPTIONS))(*[option.encode() for option in OPTIONS])
    call("nvrtcCompileProgram", program, len(OPTIONS), options)
    size = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, ptx)
    return ptx.value.decode()


def main():
    text = source()
    digest = hashlib.sha256(text.encode()).hexdigest()
    ptx = f"// Made by device/compile.py from sources with SHA-256 {digest}.\n" + compile_ptx(text)
    path = os.path.join(HERE, "..", "kernels.ptx")
    if sys.argv[1:] == ["--check"]:
        if open(path).read() != ptx:
            sys.exit("kernels.ptx is not what the sources compile to: run device/compile.py")
        return
    with open(path, "w") as file:
        file.write(ptx)


main()
