"""What several defences share: loops of training, and changes of tensors."""
