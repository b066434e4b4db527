"""TC04xx: prompt, context, device. TC05xx: toolchain. TC06xx: package and manifest."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0401": Entry(
        title="prompt longer than the compiled context",
        explanation="""
The package was compiled for a largest context; its KV cache and its rope table have exactly that many
positions. Prompt and new tokens together must fit.
""",
        wrong="tilecc run PACKAGE --prompt '<900 tokens>' --max-tokens 200     # compiled for 1024",
        right="tilecc compile MODEL --target sm_90a --max-context 2048",
    ),
    "TC0402": Entry(
        title="no usable device",
        explanation="""
`--device cuda` needs an NVIDIA driver and a GPU of the architecture that the package was built for. Without
one, `--device emulator` runs the same kernel text on the CPU.
""",
        wrong="tilecc run PACKAGE --device cuda          # on a machine without a driver",
        right="tilecc run PACKAGE --device emulator",
        exit_code=5,
    ),
    "TC0403": Entry(
        title="prompt is empty or has a token outside the vocabulary",
        explanation="""
A decode step needs at least one token, and every token id must be at least 0 and below the vocabulary size.
""",
        wrong="tilecc logits MODEL --checkpoint DIR --ids 1,999999 -o out.npy",
        right="tilecc logits MODEL --checkpoint DIR --ids 1,17 -o out.npy",
    ),
    "TC0404": Entry(
        title="kernel stopped without finishing",
        explanation="""
The emulator found a deadlock, or the watchdog of a wait on the GPU expired. The report names the CTA, the
warp role, the op, the object waited for, and the expected and seen values. This is a bug of the schedule or
of tilecc, not of the prompt; please report it with the package.
""",
        wrong="a schedule that waits for an arrival that never comes",
        right="a schedule accepted by the checker",
        exit_code=70,
    ),
    "TC0405": Entry(
        title="package and checkpoint of different models",
        explanation="""
The package was compiled for one `config.json`, the checkpoint carries another. Sizes, layer pattern and
numeric constants are compiled into the kernel, so the two must agree; the diagnostic lists the keys that
differ.
""",
        wrong="tilecc run PACKAGE_OF_MODEL_A --checkpoint CHECKPOINT_OF_MODEL_B",
        right="tilecc compile MODEL --config CHECKPOINT_OF_MODEL_B/config.json --target sm_90a",
    ),
    "TC0406": Entry(
        title="unknown device",
        explanation="""
A package runs on `emulator` (CPU, any machine with g++) or `cuda` (NVIDIA GPU). `reference` runs the model
file with PyTorch instead of the package.
""",
        wrong="tilecc run PACKAGE --device gpu",
        right="tilecc run PACKAGE --device cuda",
        exit_code=2,
    ),
    "TC0407": Entry(
        title="request outside the limits of the package",
        explanation="""
A compiled kernel has fixed limits: rows per step, sequences, positions, stop ids, CTAs. They are in
`manifest.json` and shown by `tilecc inspect`. The request names more than that, or a row twice.
""",
        wrong="engine.run_steps([[(5, 0, 9)]])      # sequence 9 of a package that holds 1",
        right="engine.run_steps([[(5, 0, 0)]])",
    ),
    "TC0408": Entry(
        title="checkpoint without a usable tokenizer",
        explanation="""
Text prompts need the model's own `tokenizer.json` in the checkpoint directory. Token ids work without it.
""",
        wrong="tilecc run PACKAGE --checkpoint DIR_WITHOUT_TOKENIZER --prompt 'def '",
        right="tilecc run PACKAGE --checkpoint DIR --prompt 'def '      # DIR/tokenizer.json exists",
    ),
    "TC0409": Entry(
        title="model file of a package not found",
        explanation="""
The reference device runs the model file itself. A package names its model file but does not contain it; it is
looked for in the current directory, in `models/` and in the installed tilecc.
""",
        wrong="tilecc run build/mine-sm_90a --checkpoint DIR --prompt 'x' --device reference",
        right="tilecc run mine.py --checkpoint DIR --prompt 'x' --device reference",
    ),
    "TC0501": Entry(
        title="nvcc not found",
        explanation="""
`--build` needs the CUDA compiler. It is looked for in TILECC_NVCC, on PATH, and in the Python package
`nvidia-cuda-nvcc`. Everything but `--build` and `--device cuda` works without it.
""",
        wrong="tilecc compile MODEL --target sm_90a --build     # no nvcc on PATH",
        right="TILECC_NVCC=/path/to/nvcc tilecc compile MODEL --target sm_90a --build",
        exit_code=3,
    ),
    "TC0502": Entry(
        title="nvcc failed",
        explanation="""
The CUDA compiler refused the emitted source. The diagnostic shows its first error; the log beside the package
has all of them. Emitted text that does not compile is a bug of tilecc unless the file was edited.
""",
        wrong="an edited kernels/NAME.cu with a syntax error",
        right="the emitted file, unchanged",
        exit_code=3,
    ),
    "TC0503": Entry(
        title="no C++ compiler",
        explanation="""
The emulator compiles the emitted kernel with g++ (C++20). It is looked for in TILECC_CXX, then CXX, then as
`g++` on PATH.
""",
        wrong="TILECC_CXX=/nowhere/g++ tilecc run PACKAGE --device emulator",
        right="tilecc run PACKAGE --device emulator      # with g++ 12 or newer on PATH",
        exit_code=3,
    ),
    "TC0504": Entry(
        title="C++ compiler failed",
        explanation="""
g++ refused the emitted source. The diagnostic shows its first error. Emitted text that does not compile is a
bug of tilecc unless the file was edited.
""",
        wrong="an edited kernels/NAME.cu with a syntax error",
        right="the emitted file, unchanged",
        exit_code=3,
    ),
    "TC0505": Entry(
        title="headers of apache-tvm-ffi not found",
        explanation="""
A built package exports its launcher in the tvm-ffi ABI, so building needs the headers that the Python package
`apache-tvm-ffi` carries. Running a built package through the plain C interface does not.
""",
        wrong="tilecc compile MODEL --target sm_90a --build      # apache-tvm-ffi was uninstalled",
        right="pip install apache-tvm-ffi",
        exit_code=3,
    ),
    "TC0506": Entry(
        title="no such CUDA architecture",
        explanation="""
Targets are named like nvcc names them: `sm_` and the compute capability, with the suffix `a` where a kernel
uses instructions of exactly that generation.
""",
        wrong="tilecc compile MODEL --target hopper --build",
        right="tilecc compile MODEL --target sm_90a --build",
        exit_code=2,
    ),
    "TC0507": Entry(
        title="disassembler not found",
        explanation="""
`tilecc inspect --sass-stats` reads machine code with `cuobjdump` and `nvdisasm`. They come with the Python
packages of the extra `toolchain` (6 MB; no CUDA toolkit, no driver) and are looked for there, then on PATH.
""",
        wrong="tilecc inspect PACKAGE --sass-stats       # neither installed nor on PATH",
        right="pip install 'tilecc[toolchain]'",
        exit_code=3,
    ),
    "TC0508": Entry(
        title="machine code could not be read",
        explanation="""
The disassembler failed, or printed a form that tilecc does not know: a version older than 12.8, or one much
newer than tilecc. The diagnostic shows what it said.
""",
        wrong="an nvdisasm of CUDA 11 on PATH and no extra `toolchain`",
        right="pip install 'tilecc[toolchain]'",
        exit_code=3,
    ),
    "TC0601": Entry(
        title="not a tilecc package",
        explanation="""
A package is the directory that `tilecc compile` writes; it contains `manifest.json`. The path does not
exist or holds something else.
""",
        wrong="tilecc inspect README.md",
        right="tilecc inspect build/mimo_tiny-sm_90a",
    ),
    "TC0602": Entry(
        title="package of another format version",
        explanation="""
The manifest was written by a version of tilecc with another package format or kernel ABI. Compile the model
again with the installed version.
""",
        wrong='{"format_version": 99}',
        right="tilecc compile MODEL --target sm_90a",
    ),
    "TC0603": Entry(
        title="damaged package",
        explanation="""
`manifest.json` is not valid, or a file that it names is missing or has another size. Compile the model again.
""",
        wrong="a package whose tables.bin was deleted",
        right="tilecc compile MODEL --target sm_90a",
    ),
    "TC0604": Entry(
        title="output directory is not a package",
        explanation="""
`tilecc compile` replaces its output directory as a whole. To protect other files it does so only if the
directory is missing, empty, or a package.
""",
        wrong="tilecc compile MODEL --target sm_90a -o .",
        right="tilecc compile MODEL --target sm_90a -o build/mine",
    ),
}
