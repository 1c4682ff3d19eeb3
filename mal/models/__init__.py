"""Networks: feature encoders F (backbones), the heads C and D, the task model M."""
