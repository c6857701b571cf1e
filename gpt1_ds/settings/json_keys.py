"""Every key that a DeepSpeed JSON may hold here: its type, its bounds, and whether it acts.

DeepSpeed 0.19.8 itself passes unknown top-level keys, reads `"false"` as true in some sections, and
ends with a traceback in others. `tests/settings/test_json_keys.py` compares the table with
DeepSpeed's own classes.
"""

from dataclasses import dataclass, replace
from typing import Union

from gpt1_ds.base.bounds import COUNT, NUMBER, POSITIVE, SHARE, Bounds

SIZE = Bounds(low=1, high=2**63)
SIZE_OR_ZERO = Bounds(high=2**63)


@dataclass(frozen=True)
class Key:
    """A value of the JSON."""

    kind: type
    bounds: Bounds | None = None
    null: bool = False
    auto: bool = False
    """Whether "auto" is taken: the run decides, or DeepSpeed's default."""
    stages: tuple[int, ...] = (0, 1, 2, 3)
    """ZeRO stages in which it acts."""
    idle: str = ""
    """Why it has no effect here, and what has; empty: it acts."""
    refusal: str = ""
    """Why a value other than null or false is refused; empty: it is not."""


Table = dict[str, Union[Key, "Table"]]

FLAG, TEXT, LIST, OBJECT = Key(bool), Key(str), Key(list), Key(dict)


def integer(bounds: Bounds) -> Key:
    return Key(int, bounds)


def number(bounds: Bounds) -> Key:
    return Key(float, bounds)


def word(*choices: str) -> Key:
    return Key(str, Bounds(choices=choices))


def auto(key: Key) -> Key:
    return replace(key, auto=True)


def nullable(key: Key) -> Key:
    return replace(key, null=True)


def in_stages(stages: tuple[int, ...], table: Table) -> Table:
    """`table`, whose keys act in these stages, and where "auto" is DeepSpeed's default."""
    return {
        name: replace(key, stages=stages, auto=True) if isinstance(key, Key) else key
        for name, key in table.items()
    }


def idle(why: str, table: Table) -> Table:
    return {name: replace(key, idle=why) for name, key in table.items() if isinstance(key, Key)}


DTYPE = nullable(word("fp32", "fp16", "bf16"))
OWN_LOG = "DeepSpeed's log is off here; metrics.jsonl and TensorBoard have the run's numbers"
OWN_CHECKPOINTS = "the run writes and reads its checkpoints itself"
BUFFERS = {"device": word("none", "cpu", "nvme"), "nvme_path": nullable(TEXT)}
OFFLOAD_OPTIMIZER: Table = {
    **BUFFERS,
    "buffer_count": auto(integer(SIZE)),
    "pin_memory": auto(FLAG),
    "pipeline_read": auto(FLAG),
    "pipeline_write": auto(FLAG),
    "fast_init": auto(FLAG),
    "ratio": auto(number(SHARE)),
    "super_offload": auto(FLAG),
    "cpuadam_cores_perc": auto(number(SHARE)),
}
OFFLOAD_PARAM: Table = {
    **BUFFERS,
    "buffer_count": auto(integer(SIZE)),
    "buffer_size": auto(integer(SIZE)),
    "max_in_cpu": auto(integer(SIZE_OR_ZERO)),
    "pin_memory": auto(FLAG),
}
EVERY_STAGE = in_stages(
    (1, 2, 3),
    {
        "contiguous_gradients": FLAG,
        "reduce_scatter": FLAG,
        "reduce_bucket_size": integer(SIZE),
        "overlap_comm": nullable(FLAG),
        "load_from_fp32_weights": FLAG,
        "elastic_checkpoint": replace(FLAG, refusal=OWN_CHECKPOINTS),
        "cpu_offload": nullable(FLAG),
        "cpu_offload_use_pin_memory": nullable(FLAG),
        "zenflow": nullable(OBJECT),
    },
)
FIRST_STAGES = in_stages(
    (1, 2),
    {
        "allgather_bucket_size": integer(SIZE),
        "use_multi_rank_bucket_allreduce": FLAG,
        "compute_grad_norm": FLAG,
        "ignore_unused_parameters": FLAG,
        "legacy_stage1": FLAG,
        "round_robin_gradients": FLAG,
        "parameter_alignment": FLAG,
    },
)
SIZES_OF_STAGE_3 = {
    "prefetch_bucket_size": integer(SIZE_OR_ZERO),
    "param_persistence_threshold": integer(SIZE_OR_ZERO),
    "model_persistence_threshold": integer(SIZE_OR_ZERO),
    "max_live_parameters": integer(SIZE_OR_ZERO),
    "max_reuse_distance": integer(SIZE_OR_ZERO),
    "module_granularity_threshold": integer(SIZE_OR_ZERO),
    "use_all_reduce_for_fetch_params": FLAG,
    "allgather_sequential": FLAG,
}
STAGE_3 = in_stages(
    (3,),
    {
        **SIZES_OF_STAGE_3,
        **{f"stage3_{name}": key for name, key in SIZES_OF_STAGE_3.items()},
        "sub_group_size": integer(SIZE),
        "cpu_offload_param": nullable(FLAG),
        "zero_hpz_partition_size": integer(SIZE),
        "zero_quantized_weights": FLAG,
        "zero_quantized_nontrainable_weights": FLAG,
        "zero_quantized_gradients": FLAG,
        "memory_efficient_linear": FLAG,
        "pipeline_loading_checkpoint": FLAG,
        "override_module_apply": FLAG,
        "log_trace_cache_warnings": FLAG,
        "enable_sanity_checks": FLAG,
        "save_muon_momentum_buffer_in_memory": FLAG,
        "leaf_module": OBJECT,
    },
)
WEIGHTS_ON_SAVE = idle(
    "gpt1_ds.export writes the weights as one file",
    dict.fromkeys(
        (
            "gather_16bit_weights_on_model_save",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
        ),
        auto(FLAG),
    ),
)
ZERO: Table = {
    "stage": integer(Bounds(high=3)),
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "offload_param": OFFLOAD_PARAM,
    "allgather_partitions": auto(FLAG),
    **EVERY_STAGE,
    **FIRST_STAGES,
    **STAGE_3,
    **WEIGHTS_ON_SAVE,
}
MONITOR_FILES: Table = {"enabled": FLAG, "output_path": TEXT, "job_name": TEXT}
TABLE: Table = {
    "train_batch_size": auto(integer(COUNT)),
    "train_micro_batch_size_per_gpu": auto(integer(COUNT)),
    "gradient_accumulation_steps": auto(integer(COUNT)),
    "gradient_clipping": auto(number(NUMBER)),
    "zero_optimization": ZERO,
    "bf16": {
        "enabled": FLAG,
        "immediate_grad_update": FLAG,
        "check_grad_overflow": FLAG,
        "bf16_master_weights_and_grads": FLAG,
        "bf16_optimizer_states": FLAG,
    },
    "fp16": {
        "enabled": FLAG,
        "auto_cast": FLAG,
        "loss_scale": number(NUMBER),
        "initial_scale_power": integer(Bounds(high=127)),
        "loss_scale_window": integer(COUNT),
        "hysteresis": integer(COUNT),
        "consecutive_hysteresis": FLAG,
        "min_loss_scale": integer(COUNT),
        "fp16_master_weights_and_grads": FLAG,
    },
    "optimizer": {"type": TEXT, "params": OBJECT, "legacy_fusion": FLAG},
    "activation_checkpointing": idle(
        "the model has train.activation_checkpointing",
        {
            "partition_activations": FLAG,
            "contiguous_memory_optimization": FLAG,
            "cpu_checkpointing": FLAG,
            "number_checkpoints": nullable(integer(COUNT)),
            "synchronize_checkpoint_boundary": FLAG,
            "profile": FLAG,
        },
    ),
    "aio": {
        "block_size": integer(SIZE),
        "queue_depth": integer(SIZE),
        "intra_op_parallelism": integer(SIZE),
        "single_submit": FLAG,
        "overlap_events": FLAG,
        "use_gds": FLAG,
    },
    "comms_logger": idle(
        OWN_LOG,
        {
            "enabled": FLAG,
            "verbose": FLAG,
            "prof_all": FLAG,
            "prof_ops": LIST,
            "debug": FLAG,
        },
    ),
    "communication_data_type": DTYPE,
    "compile": idle(
        "train.compile compiles the model",
        {
            "deepcompile": FLAG,
            "autoep_non_moe": FLAG,
            "free_activation": FLAG,
            "free_activation_threshold": integer(SIZE_OR_ZERO),
            "offload_activation": FLAG,
            "offload_activation_pin_memory": FLAG,
            "offload_opt_states": FLAG,
            "double_buffer": FLAG,
            "symmetric_memory": FLAG,
            "debug_log": FLAG,
            "offload_parameters": FLAG,
            "sync_before_reduce": FLAG,
            "sync_after_reduce": FLAG,
            "sync_before_allgather": FLAG,
            "sync_after_allgather": FLAG,
            "keep_int_input_tensors": FLAG,
            "keep_all_input_tensors": FLAG,
            "passes": nullable(LIST),
        },
    ),
    "csv_monitor": MONITOR_FILES,
    "tensorboard": MONITOR_FILES,
    "wandb": {
        "enabled": FLAG,
        "group": nullable(TEXT),
        "team": nullable(TEXT),
        "project": TEXT,
    },
    "data_types": {
        "grad_accum_dtype": DTYPE,
        "param_dtype": DTYPE,
        "buffer_dtype": DTYPE,
        "keep_in_fp32_modules": Key(list, auto=True),
    },
    "disable_python_gc": FLAG,
    "dump_state": replace(FLAG, idle=OWN_LOG),
    "flops_profiler": {
        "enabled": FLAG,
        "recompute_fwd_factor": number(NUMBER),
        "profile_step": integer(COUNT),
        "module_depth": integer(Bounds(low=-1, high=2**53)),
        "top_modules": integer(COUNT),
        "detailed": FLAG,
        "output_file": nullable(TEXT),
    },
    "log_level": replace(nullable(TEXT), idle=OWN_LOG),
    "memory_breakdown": replace(FLAG, idle=OWN_LOG),
    "prescale_gradients": FLAG,
    "gradient_predivide_factor": number(POSITIVE),
    "seq_parallel_communication_data_type": replace(DTYPE, idle="nothing is sequence-parallel"),
    "steps_per_print": replace(nullable(integer(COUNT)), idle=OWN_LOG),
    "timers": {
        "throughput": {
            "enabled": FLAG,
            "synchronized": FLAG,
        },
    },
    "torch_autocast": {
        "enabled": FLAG,
        "dtype": nullable(word("float16", "fp16", "bfloat16", "bf16")),
        "lower_precision_safe_modules": LIST,
    },
    "wall_clock_breakdown": replace(FLAG, idle=OWN_LOG),
    "zero_allow_untested_optimizer": FLAG,
    "zero_force_ds_cpu_optimizer": FLAG,
    "load_universal": replace(FLAG, idle=OWN_CHECKPOINTS),
    "checkpoint": {
        "tag_validation": word(
            "Ignore", "Warn", "Fail", "IGNORE", "WARN", "FAIL", "ignore", "warn", "fail"
        ),
        "load_universal": replace(FLAG, refusal=OWN_CHECKPOINTS),
        "use_node_local_storage": replace(FLAG, refusal=OWN_CHECKPOINTS),
        "writer": replace(nullable(OBJECT), refusal=OWN_CHECKPOINTS),
        "checkpoint_serialization": replace(FLAG, idle=OWN_CHECKPOINTS),
        "parallel_write": replace(OBJECT, idle=OWN_CHECKPOINTS),
    },
}
NULL_SECTIONS = ("aio", "offload_optimizer", "offload_param")
"""Sections that may be null, which is as good as absent."""

REMOVED = "DeepSpeed 0.19 has removed it"
NO_EXPERTS = "GPT-1 has no experts"
OWN_BATCHES = "the run makes its batches itself"
REFUSED = {
    "amp": f"{REMOVED}: take bf16",
    "autotuning": "it would start the run many times: python -m gpt1_ds.plan compares settings",
    "bfloat16": "it is the old name of bf16",
    "comet": "the run has no such monitor: take tensorboard, wandb or csv_monitor",
    "compression_training": REMOVED,
    "curriculum_learning": f"{REMOVED}: train.batch_start lets the batch grow",
    "data_efficiency": f"{OWN_BATCHES}: train.batch_start lets the batch grow",
    "dataloader_drop_last": OWN_BATCHES,
    "datastates_ckpt": OWN_CHECKPOINTS,
    "disable_allgather": "DeepSpeed 0.19 reads it and does nothing with it",
    "eigenvalue": REMOVED,
    "elasticity": f"{REMOVED}: a run resumes on another number of ranks without it",
    "expert_parallel": NO_EXPERTS,
    "gradient_allreduce_op": "the losses are means over all ranks",
    "graph_harvesting": REMOVED,
    "hybrid_engine": "it is for reinforcement learning",
    "managed_gradient_accumulation": "the training loop leaves the counting to DeepSpeed",
    "nebula": f"{REMOVED}: {OWN_CHECKPOINTS}",
    "pipeline": "the model is not cut into stages: ZeRO divides it",
    "progressive_layer_drop": REMOVED,
    "quantize_training": REMOVED,
    "sparse_attention": REMOVED,
    "sparse_gradients": f"{REMOVED}, and the tied embedding has dense gradients",
    "tensor_parallel": "the layers are not cut: ZeRO divides the model",
    "use_data_before_expert_parallelism": NO_EXPERTS,
    "vocabulary_size": "the tokenizer decides it, and the model pads it to a multiple of 128",
    "weight_quantization": "the model is trained and not quantized",
}
"""Sections and keys that DeepSpeed reads at top level, and why a run cannot have them."""
