"""The demo checkpoint's three networks: Stable Diffusion 1.x in every convention but its size.

A loader that knows the SD 1.x conventions rebuilds them from tensor shapes alone: eight UNet
attention heads, one text head per 64 channels, attention at all UNet levels but the last,
quick-GELU, 77 positions. Every channel count is a multiple of 32 because LDM code fixes 32 norm
groups; none is 32 itself, for a group of one channel would erase that channel's mean, and with it
flat colour.
"""

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

VOCABULARY = 49408
START_TOKEN = 49406
END_TOKEN = 49407  # pads too, as SD 1.x does
MAX_TOKENS = 77

LATENT_CHANNELS = 4
LATENT_SIDE = 8
LATENT_SCALE = 0.18215  # SD 1.x: latents times this have unit spread

TEXT_WIDTH = 64
TEXT_LAYERS = 2
UNET_CHANNELS = (96, 96)  # LDM wants whole multiples of the first
VAE_CHANNELS = (96, 96, 96, 96)

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def build_autoencoder() -> AutoencoderKL:
    """Pictures of 64 pixels a side to latents of 4 x 8 x 8, values -1 to 1."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        layers_per_block=1,
        norm_num_groups=32,
        sample_size=LATENT_SIDE * 8,
        scaling_factor=LATENT_SCALE,
    )


def build_unet() -> UNet2DConditionModel:
    """Predicts the noise in latents, given the text encoder's last hidden states."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,  # diffusers' historical name for the number of heads
        norm_num_groups=32,
        use_linear_projection=False,
    )


def text_config(vocabulary: int = VOCABULARY, end_token: int = END_TOKEN) -> CLIPTextConfig:
    """The text encoder's configuration; training asks for one with only the words it uses."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=max(1, TEXT_WIDTH // 64),
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        pad_token_id=end_token,
    )


def build_text_encoder(vocabulary: int = VOCABULARY, end_token: int = END_TOKEN) -> CLIPTextModel:
    """CLIP's text tower; the UNet reads its last hidden states after the final norm."""
    return CLIPTextModel(text_config(vocabulary, end_token))
