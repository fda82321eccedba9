"""Does training on chosen data beat just training shorter, at equal cost?"""
