"""Work that goes on without a person: labelling in bulk, serving, sharing."""
