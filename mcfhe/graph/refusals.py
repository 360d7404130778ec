"""What the importer says when it meets an operation that exact residue arithmetic cannot run."""

from __future__ import annotations

SUPPORTED = (
    "supported are Conv2d, Linear, BatchNorm, AvgPool2d, AdaptiveAvgPool2d, Flatten, Dropout in eval, "
    "polynomials of degree up to 16, residual adds and torch.cat on channels"
)

_ACTIVATION = "is no polynomial; use mcfhe.PolyActivation (or x * x) and train with it"
_MAX_POOL = "compares values, which encrypted data does not allow; use AvgPool2d"
_SOFTMAX = "is not needed on the server: leave it to the client, the highest score is the same without it"
_NORM = "normalises by statistics of its own input; use BatchNorm1d or BatchNorm2d, which are constants in eval mode"
_COMPARE = "compares or rounds values, which encrypted data does not allow; use a polynomial"
_PAD = "pads outside of a convolution, or not with zeros; use Conv2d(padding=..., padding_mode='zeros')"
_RECURRENT = "is a recurrent layer; use convolutions and linear layers"
_DIMENSIONS = "is not two-dimensional; use Conv2d or AvgPool2d on [batch, C, H, W]"
_RESAMPLE = "resamples its input; use a strided Conv2d to go down, and no upsampling"
_ATTENTION = "multiplies encrypted values by each other through a softmax; use convolutions and linear layers"
_MIXES = "mixes the images of a batch or picks some positions; work on whole [batch, C, H, W] maps"

_ADVICE = {
    _ACTIVATION: "relu relu6 leaky_relu rrelu prelu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish "
    "hardsigmoid hardshrink softshrink softplus log_sigmoid softsign threshold glu exp log sqrt rsqrt reciprocal "
    "sin cos erf abs clamp clamp_min clamp_max",
    _MAX_POOL: "max_pool2d max_pool2d_with_indices adaptive_max_pool2d fractional_max_pool2d max amax maximum min amin "
    "minimum max_pool1d max_pool3d",
    _SOFTMAX: "softmax log_softmax _softmax _log_softmax softmin",
    _NORM: "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm local_response_norm norm "
    "linalg_vector_norm var std",
    _COMPARE: "argmax argmin sort topk gt lt ge le eq ne where sign round floor ceil heaviside",
    _PAD: "pad constant_pad_nd reflection_pad2d replication_pad2d circular_pad",
    _RECURRENT: "lstm gru rnn_tanh rnn_relu",
    _DIMENSIONS: "conv1d conv3d avg_pool1d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d",
    _RESAMPLE: "conv_transpose1d conv_transpose2d conv_transpose3d upsample_nearest2d upsample_bilinear2d "
    "upsample_bicubic2d grid_sampler pixel_shuffle",
    _ATTENTION: "scaled_dot_product_attention bmm baddbmm einsum",
    _MIXES: "slice select index index_select gather unbind split chunk split_with_sizes expand repeat roll flip "
    "permute transpose stack",
}
_BY_OPERATION = {name: text for text, names in _ADVICE.items() for name in names.split()}


def advice(operation: str) -> str:
    """Why the ATen operation (without ``aten::`` and the underscore of in-place forms) is refused, and what to use."""
    plain = operation if operation in _BY_OPERATION else operation.rstrip("_")
    return _BY_OPERATION.get(plain, f"is not supported; {SUPPORTED}")
