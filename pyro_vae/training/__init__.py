"""Training: `train.py` checks what is asked for, `loop.py` is the one loop, `divergence.py` explains a NaN."""
