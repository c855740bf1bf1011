"""SiT-S/2 and JiT-B/16 with iREPA's head, and the loss, in plain PyTorch: the same work as on the Rust side, with
PyTorch's fast operators (fused attention and RMS norm, fused AdamW, foreach clipping and EMA)."""

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


class Embedding(nn.Module):
    """Maps times [B] and labels [B] to a condition [B, D] after SiLU, and to the label embedding [B, D]."""

    def __init__(self, width, classes):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width)

    def forward(self, t, labels):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None] * frequencies
        of_labels = self.labels(labels)
        return F.silu(self.time(torch.cat([angles.cos(), angles.sin()], -1)) + of_labels), of_labels


class SiT(nn.Module):
    """Returns a prediction for images [B, 3, 32, 32], and the projected hidden tokens at block 4."""

    def __init__(self, width=384, depth=12, heads=6, classes=1000, encoder_width=768, aligned=4):
        super().__init__()
        self.aligned, self.width, self.classes = aligned, width, classes
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.register_buffer("pos", torch.randn(1, 256, width) * 0.02)
        self.condition = Embedding(width, classes)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_modulation, self.final = nn.Linear(width, 2 * width), nn.Linear(width, 12)
        self.head = nn.Conv2d(width, encoder_width, 3, padding=1)
        # As in SiT's initialisation, blocks return their input and the prediction is zero.
        for layer in [*(block.modulation for block in self.blocks), self.final_modulation, self.final]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, labels):
        batch = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2) + self.pos
        c, _ = self.condition(t, labels)
        for index, block in enumerate(self.blocks):
            x = block(x, c)
            if index + 1 == self.aligned:
                hidden = x
        shift, scale = self.final_modulation(c).view(batch, 2, 1, self.width).unbind(1)
        x = self.final(F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale) + shift)
        x = x.view(batch, 16, 16, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, 32, 32)
        image = hidden.view(batch, 16, 16, self.width).permute(0, 3, 1, 2)
        return x, self.head(image).permute(0, 2, 3, 1).reshape(batch, 256, -1)

    def predict(self, images, labels):
        """Returns two functions: one runs a network on noisy images; one maps its prediction to the velocities
        [B, 3, 32, 32] that the loss compares."""
        t = torch.rand(len(images), device=images.device)
        noise = torch.randn_like(images)
        mixed = (1 - t.view(-1, 1, 1, 1)) * images + t.view(-1, 1, 1, 1) * noise
        dropped = torch.where(torch.rand(len(images), device=images.device) < 0.1, self.classes, labels)
        return lambda network: network(mixed, t, dropped), lambda prediction: (prediction, noise - images)


class RotatingBlock(nn.Module):
    """A block of JiT with RMS norms, normalised and rotated queries and keys, and SwiGLU."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, head, inner = heads, width // heads, 4 * width * 2 // 3
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.norm_q, self.norm_k = nn.RMSNorm(head, eps=1e-6), nn.RMSNorm(head, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x, c, cosines, sines):
        batch, count, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).view(batch, 6, 1, width).unbind(1)
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (
            rotate(norm(part.float()), cosines, sines).to(v.dtype)
            for norm, part in ((self.norm_q, q), (self.norm_k, k))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        x = x + gate1 * self.proj(y)
        y = self.norm2(x) * (1 + scale2) + shift2
        a, b = self.w12(y).chunk(2, -1)
        return x + gate2 * self.w3(F.silu(a) * b)


def rotate(x, cosines, sines):
    """Rotates pairs of neighbouring numbers of the last dimension."""
    first, second = x[..., 0::2], x[..., 1::2]
    rotated = torch.stack([first * cosines - second * sines, first * sines + second * cosines], -1)
    return rotated.flatten(-2)


class JiT(nn.Module):
    """Returns a prediction for images [B, 3, 256, 256], and the projected hidden tokens at block 4."""

    def __init__(self, width=768, depth=12, heads=12, classes=1000, encoder_width=768, aligned=4, context=32):
        super().__init__()
        self.aligned, self.width, self.classes, self.context = aligned, width, classes, context
        self.narrow, self.patches = nn.Linear(3 * 16 * 16, 128, bias=False), nn.Linear(128, width)
        self.register_buffer("pos", torch.randn(1, 256, width) * 0.02)
        self.context_pos = nn.Parameter(torch.randn(1, context, width) * 0.02)
        head = width // heads
        frequencies = 10000.0 ** -(torch.arange(head // 4) * 4 / head)
        positions = torch.arange(16.0)[:, None] * frequencies
        angles = torch.cat([positions[:, None].expand(16, 16, -1), positions[None].expand(16, 16, -1)], -1).flatten(
            0, 1
        )
        angles = torch.cat([torch.zeros(context, head // 2), angles])
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        self.condition = Embedding(width, classes)
        self.blocks = nn.ModuleList(RotatingBlock(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.final_modulation, self.final = nn.Linear(width, 2 * width), nn.Linear(width, 3 * 16 * 16)
        self.head = nn.Conv2d(width, encoder_width, 3, padding=1)
        for layer in [*(block.modulation for block in self.blocks), self.final_modulation, self.final]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, labels):
        batch = x.shape[0]
        x = x.view(batch, 3, 16, 16, 16, 16).permute(0, 2, 4, 1, 3, 5).reshape(batch, 256, 768)
        x = self.patches(self.narrow(x)) + self.pos
        c, of_labels = self.condition(t, labels)
        for index, block in enumerate(self.blocks):
            if index == self.aligned:
                x = torch.cat([of_labels[:, None] + self.context_pos, x], 1)
            x = block(x, c, self.cosines[-x.shape[1] :], self.sines[-x.shape[1] :])
            if index + 1 == self.aligned:
                hidden = x
        shift, scale = self.final_modulation(c).view(batch, 2, 1, self.width).unbind(1)
        x = self.final(self.norm(x[:, self.context :]) * (1 + scale) + shift)
        x = x.view(batch, 16, 16, 16, 16, 3).permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, 256, 256)
        image = hidden.view(batch, 16, 16, self.width).permute(0, 3, 1, 2)
        return x, self.head(image).permute(0, 2, 3, 1).reshape(batch, 256, -1)

    def predict(self, images, labels):
        """As in SiT, but the network predicts the image, and the loss compares the velocities towards it."""
        t = torch.sigmoid(torch.randn(len(images), device=images.device) * 0.8 - 0.8)
        time = t.view(-1, 1, 1, 1)
        mixed = time * images + (1 - time) * torch.randn_like(images)
        dropped = torch.where(torch.rand(len(images), device=images.device) < 0.1, self.classes, labels)
        remaining = (1 - time).clamp_min(0.05)
        return (
            lambda network: network(mixed, t, dropped),
            lambda prediction: ((prediction - mixed) / remaining, (images - mixed) / remaining),
        )
