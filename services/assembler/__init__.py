"""From generated blocks to one sparse sub-model, behind `ports.Assembler`."""
