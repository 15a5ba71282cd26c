"""Operations on Monarch matrices with a fast path for GPUs, each beside its plain torch reference."""
