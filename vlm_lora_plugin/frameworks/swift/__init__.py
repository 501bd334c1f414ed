"""ms-swift: the same model, recipe, encoder, loss and order as the Trainer, in Swift's own command line."""
