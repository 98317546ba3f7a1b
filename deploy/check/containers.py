def image(): raise NotImplementedError
def pods(): raise NotImplementedError
