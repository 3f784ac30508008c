"""What a change of the input does to a row: gaps, gain retained, the parts of a drop, families left out; pure."""
