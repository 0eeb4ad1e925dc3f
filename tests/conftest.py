import os


# Before torch and huggingface_hub are imported: the models are so small that threads only wait for each other, and no
# test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
