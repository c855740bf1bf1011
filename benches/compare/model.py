"""SiT-S/2 with iREPA's head, and its loss, in plain PyTorch: the same work as the Rust side's, with what
PyTorch has to do it fast (fused attention, fused AdamW, foreach clipping and EMA)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

ALPHA, EPS = 0.6, 1e-6


def spatial_norm(tokens):
    """z-score over the tokens of [B, T, D], per sample and channel."""
    std, mean = torch.std_mean(tokens, dim=1, keepdim=True)
    return (tokens - ALPHA * mean) / (std + EPS)


def alignment_loss(tokens, projected):
    target = F.normalize(spatial_norm(tokens), dim=-1)
    return -(target * F.normalize(projected, dim=-1)).sum(-1).mean()


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x, c):
        batch, count, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).view(batch, 6, 1, width).unbind(1)
        y = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        x = x + gate1 * self.proj(y)
        y = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(F.gelu(self.fc1(y), approximate="tanh"))


class SiT(nn.Module):
    """A prediction for images [B, 3, 32, 32], and the projected hidden tokens at block 4."""

    def __init__(self, width=384, depth=12, heads=6, classes=1000, encoder_width=768, aligned=4):
        super().__init__()
        self.aligned, self.width, self.classes = aligned, width, classes
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.register_buffer("pos", torch.randn(1, 256, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_modulation, self.final = nn.Linear(width, 2 * width), nn.Linear(width, 12)
        self.head = nn.Conv2d(width, encoder_width, 3, padding=1)
        # As SiT starts: blocks that pass their input on, a prediction of zero.
        for layer in [*(block.modulation for block in self.blocks), self.final_modulation, self.final]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, labels):
        batch = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2) + self.pos
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None] * frequencies
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.labels(labels)
        c = F.silu(c)
        for index, block in enumerate(self.blocks):
            x = block(x, c)
            if index + 1 == self.aligned:
                hidden = x
        shift, scale = self.final_modulation(c).view(batch, 2, 1, self.width).unbind(1)
        x = self.final(F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale) + shift)
        x = x.view(batch, 16, 16, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, 32, 32)
        image = hidden.view(batch, 16, 16, self.width).permute(0, 3, 1, 2)
        return x, self.head(image).permute(0, 2, 3, 1).reshape(batch, 256, -1)
