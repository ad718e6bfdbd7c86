"""How numbers are computed: eagerly or by one compiled graph, on which device, in how many processes."""
