import os


# Before torch and huggingface_hub are imported: the models are so small that threads only wait for each other, and no
# test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch


# Before anything imports Triton
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
