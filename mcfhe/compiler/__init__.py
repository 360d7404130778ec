"""From a module to a program: the pipeline, the search for the fewest limbs, and what a refusal would need."""
