"""From a model file to a Graph: import, torch.export on meta tensors, conversion op by op.

The entry is `tilecc.trace.capture.trace_model`. Importing this package alone does not import torch.
"""
