def accuracy():
    pass
