"""Allow-list of architecture arguments from files, by name and JSON type.

``timm.create_model`` also accepts arguments that load files (``checkpoint_path``), access the network (``pretrained_cfg``) or change the
kind of module (``features_only``). Runs, folders in timm's format and hub repositories may come from untrusted sources. Only arguments
that describe the shape of a network are therefore passed to timm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from edgetl.train.networks.pruned import PRUNED

# Arguments of timm's models with a number or a list of numbers.
NUMBERS = frozenset(
    """
    always_partition attn_drop_rate avg_down base_width block_reduce_first cardinality channels class_token conv_bias conv_mlp depth
    depth_mult depths dim dims distillation distilled drop_block_rate drop_path_rate drop_rate dropout dynamic_img_pad
    dynamic_img_size embed_dim embed_dims expand_ratio fc_norm final_norm fix_stem global_pos_size groups growth_rate head_bias
    head_dim head_hidden_size head_init_scale head_norm_first img_size in_chans init_values kernel_size layer_scale_init_value layers
    ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps num_classes num_features num_heads num_kv_heads num_reg_tokens
    output_stride patch_drop_rate patch_norm patch_size pos_drop_rate pre_norm proj_drop_rate qk_norm qkv_bias qkv_fused
    ref_feat_shape reg_tokens rope_grid_offset scale_attn_inner scale_mlp se_ratio sr_ratios stem_chs stem_size stem_width
    strict_img_size swiglu_mlp use_abs_pos_emb use_fc_norm use_grn use_post_norm use_rel_pos_bias use_rot_pos_emb width width_factor
    width_mult widths window_ratio window_size zero_init_last
    """.split()
)
# Arguments with a word from timm's own tables.
WORDS = frozenset(
    """
    aa_layer act_layer global_pool norm_layer pad_type pool_type pos_embed rope_type se_layer stem_type weight_init
    """.split()
)
# Limits above the values of all published networks.
LARGEST, MOST_LAYERS, MOST_NUMBERS = 16_384, 256, 64
_DEPTHS = frozenset({"depth", "depths", "layers"})
_WORD = re.compile(r"[A-Za-z0-9_]{0,40}")
_ARCHITECTURE = re.compile(r"(torchvision:)?[A-Za-z0-9_.-]{1,120}")


def architecture_problem(name: str) -> str | None:
    """Check that ``name`` from a file is the name of an architecture, without a prefix that loads a folder or accesses a hub.

    Returns:
        The problem, or None.
    """
    return None if _ARCHITECTURE.fullmatch(name) else f"{name[:80]!r} is not the name of an architecture of timm or torchvision"


def args_problem(args: Mapping[str, object]) -> str | None:
    """Check that ``args`` may be passed to the constructor of an architecture. Return the problem, or None."""
    for name, value in args.items():
        if name == PRUNED:
            if not _are_sizes(value):
                return f"{PRUNED} is not a table of layer sizes"
        elif name in NUMBERS:
            values = value if isinstance(value, list | tuple) else [value]
            largest = MOST_LAYERS if name in _DEPTHS else LARGEST
            if len(values) > MOST_NUMBERS or not all(_is_number(item, largest) for item in values):
                return f"{name} is not a number, or a list of at most {MOST_NUMBERS}, up to {largest}"
        elif name in WORDS:
            if value is not None and not (isinstance(value, str) and _WORD.fullmatch(value)):
                return f"{name} is not a word"
        else:
            return f"{str(name)[:80]!r} is not an allowed argument of an architecture"
    return "in_chans is not 3, but edgetl's images are RGB" if args.get("in_chans") not in (None, 3) else None


def _is_number(value: object, largest: int) -> bool:
    """Return True for finite numbers up to ``largest``, booleans and None."""
    return value is None or (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= largest)


def _are_sizes(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(row, list | tuple) and 1 <= len(row) <= 3 and all(type(size) is int and 1 <= size <= 2**20 for size in row)
        for row in value.values()
    )
