"""The code that Inductor makes for a GPU out of rewritten graphs, made and compiled on a machine without one.

    python -m benchmarks.cuda_code [--only TEXT] [--capability 9.0] [--json FILE] [--code FOLDER]

A small Qwen3-VL and a small LLaVA are compiled by `opskip_compile.compile`, a Qwen3-VL-8B of four layers by
``torch.compile`` with rows counted before the call or found by the graph; in bfloat16, on fake tensors that say they
are on a GPU. Inductor lowers what the passes have made of their graphs, and Triton compiles every kernel to a cubin.
Nothing runs: whether results are right, and how fast, only a GPU tells (`benchmarks.gpu_check`).

Needs a build of torch with CUDA, which comes with Triton, and a C compiler; no GPU and no driver.
"""
