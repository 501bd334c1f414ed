"""ms-swift's options: which were given, what each means in a recipe, and what is trained with."""
