"""tilecc: compiles a PyTorch description of one LLM decode step into one readable persistent CUDA kernel.

The stages are sub-packages, in pipeline order: ``trace``, ``ir``, ``passes``, ``emit``, ``build``;
``docs/architecture.md`` walks them. Importing this package imports none of them.
"""

__version__ = "0.1.0.dev0"
